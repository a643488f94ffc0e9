//! `hash`: a digest of an array's bytes, by the `sha2` and `blake3` crates, which choose their instructions
//! themselves.
//!
//! The bytes are those of the elements in C order, little-endian, whatever the order in the file; shape and type
//! are not part of them. That is what `hashlib` says of NumPy's `tobytes`.

use sha2::{Digest, Sha256};

use super::{Call, KernelError, Outcome};

/// Bytes between two beats: below 3 ms also where the processor has no instructions for SHA-256.
const PIECE: usize = 1 << 20;

/// The digest in hexadecimal, as the result.
pub(super) fn hash(call: &Call<'_>) -> Result<Outcome, KernelError> {
    let bytes = call.inputs[0].bytes();
    call.pulse.beat()?;
    let digest = if call.params.word("algorithm") == "blake3" {
        let mut hasher = blake3::Hasher::new();
        for piece in bytes.chunks(PIECE) {
            call.pulse.beat()?;
            hasher.update(piece);
        }
        hasher.finalize().to_hex().to_string()
    } else {
        let mut hasher = Sha256::new();
        for piece in bytes.chunks(PIECE) {
            call.pulse.beat()?;
            hasher.update(piece);
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    Ok(Outcome { result: Some(digest.into()), ..Outcome::default() })
}
