//! An array seen from one of its axes: what `reduce`, `cumsum` and `softmax` walk along.

use super::{Call, KernelError, ParamError, ParamValue, Params};

/// The axis of input 0 that a parameter `axis` of this value means, counted from the front.
pub(super) fn axis_of(call: &Call<'_>, axis: i64) -> Result<usize, KernelError> {
    let ndim = call.inputs[0].shape().len();
    let counted = if axis < 0 { axis + ndim as i64 } else { axis };
    if let Some(counted) = usize::try_from(counted).ok().filter(|&counted| counted < ndim) {
        return Ok(counted);
    }
    let null_allowed = *Params::defaults(call.kernel).get("axis") == ParamValue::Null;
    let allowed = match (ndim, null_allowed) {
        (0, false) => return Err(call.wrong_shape(0, "one axis or more")),
        (0, true) => "null for an array without axes".to_owned(),
        _ => {
            let or_null = if null_allowed { ", or null" } else { "" };
            format!("a whole number from -{ndim} to {} for an array of {ndim} axes{or_null}", ndim - 1)
        }
    };
    Err(ParamError::Bad { kernel: call.kernel, name: "axis", found: axis.to_string(), allowed }.into())
}

/// `outer` blocks of `length` rows of `inner` elements; a line is one column of a block.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub outer: usize,
    pub length: usize,
    pub inner: usize,
}

impl Lines {
    pub fn new(shape: &[usize], axis: usize) -> Lines {
        // An empty array may have axes whose product is beyond counting; its answer is made before they are
        // used.
        let product =
            |lengths: &[usize]| lengths.iter().fold(1_usize, |all, &length| all.saturating_mul(length));
        Lines { outer: product(&shape[..axis]), length: shape[axis], inner: product(&shape[axis + 1..]) }
    }

    /// Elements of a block.
    pub fn block(self) -> usize {
        self.length * self.inner
    }
}
