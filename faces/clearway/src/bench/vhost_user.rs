//! The vhost-user path against its peers', as text.

use std::fmt::{self, Formatter};

use super::{compare::Results, peers::Subject, table::cell};

/// What the switch's rate is to be, at least, as a multiple of testpmd's.
const AIMS: [(u16, f64); 2] = [(64, 1.3), (1500, 1.3)];

impl Results {
    /// Frames between two vhost-user ports, of the same clients, by the switch and by the peers.
    pub(super) fn vhost_user(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.sizes.iter().all(|size| self.rate(Subject::VhostUser, *size).is_none()) {
            return Ok(());
        }
        writeln!(f, "## The vhost-user path\n")?;
        writeln!(
            f,
            "Frames between two vhost-user ports by one polling core, in millions a second; the same clients (DPDK's \
             virtio-user devices, packed rings) on the other core. The aim is for the rate. \"At work\": what the \
             forwarder's core takes for a frame, ns, without the turns in which nothing had come, as the forwarder says \
             itself; and, of Clearway alone, without the moments in which it lets a stream grow, so that this flatters it \
             wherever its clients are the slower side. The ratios are within \
             each round. Medians (least–greatest).\n"
        )?;
        writeln!(
            f,
            "| bytes | Clearway's switch | testpmd | OVS-DPDK | in testpmd's | Clearway at work | testpmd at work | per core \
             in testpmd's | aim | |"
        )?;
        writeln!(f, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")?;
        for size in &self.sizes {
            write!(f, "| {size} |")?;
            for subject in [Subject::VhostUser, Subject::Testpmd, Subject::Ovs] {
                cell(f, self.rate(subject, *size), 1e-6, 2)?;
            }
            let ratio = self.over_rounds(|round| {
                let own = round.rate(Subject::VhostUser, *size)?.frames_per_second;
                Some(own / round.rate(Subject::Testpmd, *size)?.frames_per_second)
            });
            cell(f, ratio, 1.0, 2)?;
            for subject in [Subject::VhostUser, Subject::Testpmd] {
                cell(f, self.over_rounds(|round| round.rate(subject, *size)?.busy_ns), 1.0, 1)?;
            }
            let per_core = self.over_rounds(|round| {
                let own = round.rate(Subject::VhostUser, *size)?.busy_ns?;
                Some(round.rate(Subject::Testpmd, *size)?.busy_ns? / own)
            });
            cell(f, per_core, 1.0, 2)?;
            match (ratio, AIMS.iter().find(|(of, _)| of == size)) {
                (Some(ratio), Some((_, aim))) => {
                    let verdict = self.verdict(*size, ratio.median >= *aim);
                    writeln!(f, " ≥ {aim} | {verdict} |")?;
                }
                _ => writeln!(f, " | |")?,
            }
        }
        writeln!(f)
    }
}
