//! What an agent knows, kept over its death, the swarm's and the host's; `journal::snapshot` has the files.

use super::Context;
use crate::journal::snapshot::{Snapshots, machine};
use crate::messaging::envelope::Severity;
use crate::os::topology::Topology;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Snapshots as an agent uses them: whatever goes wrong is told and never in the way.
#[derive(Debug, Default)]
pub(super) struct Memory(Option<Snapshots>);

impl Memory {
    /// What was known under this name, if the swarm keeps anything, and by which version of the program.
    pub(super) fn recall<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        context: &mut Context,
    ) -> Option<(T, String)> {
        let folder = context.start.settings.snapshots.clone()?;
        let mut snapshots = Snapshots::new(&folder, name, machine(&Topology::read()));
        let found = snapshots.restore();
        self.0 = Some(snapshots);
        match found {
            Ok(restored) => {
                for (path, why) in restored.damaged {
                    let text = format!("{name}: {why}; set aside as {}", path.display());
                    context.note(Severity::Warning, "snapshot_damaged", &text);
                }
                let (state, generation, product) = restored.state?;
                let text = format!("{name}, generation {generation}");
                context.note(Severity::Info, "snapshot_restored", &text);
                Some((state, product))
            }
            Err(error) => {
                let text = format!("{name}: {}: {error}", folder.display());
                context.note(Severity::Warning, "snapshot_unreadable", &text);
                None
            }
        }
    }

    /// Writes down what is known now.
    pub(super) fn keep<T: Serialize>(&mut self, state: &T, context: &mut Context) {
        let Some(snapshots) = &mut self.0 else { return };
        if let Err(error) = snapshots.save(state) {
            let text = format!("{}: {}: {error}", snapshots.name(), snapshots.folder().display());
            context.note(Severity::Warning, "snapshot_failed", &text);
        }
    }
}
