//! The balancer as the outside sees it: how it stands, who decides, and when its guard takes over.

use super::Supervisor;
use super::action::{BalancerView, Refused, Reply};
use crate::messaging::envelope::Severity;
use crate::tasks::Mode;

impl Supervisor {
    pub(super) fn balancer_view(&self) -> Option<BalancerView> {
        let standing = self.dispatcher.policy().standing()?;
        Some(BalancerView {
            mode: standing.mode.name().to_owned(),
            is_guarded: standing.is_guarded,
            alarms: standing.alarms,
            guarded_tasks: standing.guarded_tasks,
            // Nothing was expected of no task.
            model_error: (standing.samples > 0).then_some(standing.error),
            samples: standing.samples,
        })
    }

    /// Has somebody else decide where tasks go, from the next task on.
    pub(super) fn switch_balancer(&mut self, mode: Mode) -> Reply {
        let before = self.dispatcher.policy().standing().map(|standing| standing.mode);
        if !self.dispatcher.policy_mut().set_mode(mode) {
            let policy = self.dispatcher.policy().name();
            return Reply::Refused(Refused::Conflict(format!(
                "the placement rule is {policy}, which has no modes; `balancer.policy` has to be learned"
            )));
        }
        if let Some(before) = before.filter(|before| *before != mode) {
            let text = format!("placement is by {} now, and was by {}", mode.name(), before.name());
            self.events.add(Severity::Info, "balancer_mode", None, text);
        }
        Reply::Done
    }

    /// Tells when the guard took over or gave back.
    pub(super) fn watch_balancer(&mut self) {
        let Some(standing) = self.dispatcher.policy().standing() else { return };
        if standing.alarms > self.guard_alarms {
            self.guard_alarms = standing.alarms;
            let text =
                "tasks took longer than they would have under the safe rule, which places them for a while";
            self.events.add(Severity::Warning, "balancer_guard", None, text.to_owned());
        }
        if standing.is_guarded != std::mem::replace(&mut self.is_guarded, standing.is_guarded)
            && !standing.is_guarded
        {
            let text = format!("the learned policy is tried again, after {} tasks", standing.guarded_tasks);
            self.events.add(Severity::Info, "balancer_guard", None, text);
        }
    }
}
