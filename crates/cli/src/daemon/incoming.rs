//! Guests that arrive at this host.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use vmferry_core::RamLayout;
use vmferry_core::report::Outcome;
use vmferry_guest::{DiskInfo, DiskPlan, GuestSpec, PlacedDisk};
use vmferry_runtime::{Admitted, GuestDir, Holdings, Host, IncomingReport};

use super::disks;
use super::host::{LocalHost, of_guest};
use super::refusal::Refusal;
use super::registry::{Member, Slot};
use super::reports::new_id;
use super::state_dir::{self, Marker};
use crate::api::ReportSide;
use crate::names;

impl Host for LocalHost {
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String> {
        let admitted = self
            .create_incoming(spec, layout, None)
            .map_err(|refusal| refusal.line());
        match &admitted {
            Ok(_) => tracing::info!("{} ({}) is on its way here", spec.name, spec.backend),
            Err(why) => tracing::warn!("a guest on offer was refused: {why}"),
        }
        admitted
    }

    fn admit_with_disks(
        &self,
        spec: &GuestSpec,
        layout: &RamLayout,
        plan: &DiskPlan,
    ) -> Result<(Admitted, Vec<PlacedDisk>), String> {
        let admitted = self
            .create_with_disks(spec, layout, plan)
            .map_err(|refusal| refusal.line());
        match &admitted {
            Ok(_) => tracing::info!(
                "{} ({}) is on its way here with its disks",
                spec.name,
                spec.backend
            ),
            Err(why) => tracing::warn!("a guest on offer was refused: {why}"),
        }
        admitted
    }

    fn holdings(&self, name: &str, most: u64) -> Option<Arc<dyn Holdings>> {
        self.held(name, most)
    }

    fn arrived(&self, name: &str) {
        tracing::info!("{name} runs here");
        self.registry.change(name, |slot| {
            let Slot::Arriving { member, id } = slot else {
                return Some(slot);
            };
            // From here on a restart finds it as ours whatever the marker says; the journal was first.
            disks::arrived(&member.dir);
            state_dir::clear_marker(&member.dir, Marker::Arriving);
            Some(Slot::Receiving { member, id })
        });
    }

    fn discarded(&self, name: &str, reason: &str) {
        tracing::warn!("{name} did not arrive: {reason}");
        self.keep_report(
            name,
            &json!({"vm": name, "outcome": Outcome::Failed, "error": reason}),
        );
        let mut gone = None;
        self.registry.change(name, |slot| match slot {
            Slot::Arriving { member, .. } | Slot::Receiving { member, .. } => {
                disks::discarded(name, &member.dir, reason);
                state_dir::remove_guest(&member.dir);
                gone = Some(member);
                None
            }
            other => Some(other),
        });
    }

    fn finished(&self, name: &str, report: IncomingReport) {
        tracing::info!("all of {name} is here");
        self.keep_report(name, &report);
        if let Ok(Slot::Arriving { member, .. } | Slot::Receiving { member, .. }) = self.registry.get(name) {
            self.samplers.begin(&member);
        }
        self.registry.change(name, |slot| match slot {
            Slot::Arriving { member, .. } | Slot::Receiving { member, .. } => {
                state_dir::clear_marker(&member.dir, Marker::Arriving);
                Some(Slot::Here(member))
            }
            other => Some(other),
        });
    }
}

impl LocalHost {
    /// Keeps what this host saw of a migration under way, before it is seen to be over.
    fn keep_report(&self, name: &str, report: &impl Serialize) {
        if let Ok(Slot::Arriving { id, .. } | Slot::Receiving { id, .. }) = self.registry.get(name) {
            self.reports.keep(&id, name, ReportSide::Destination, report);
        }
    }

    /// The name and the specification come from a peer.
    fn create_incoming(
        &self,
        spec: &GuestSpec,
        layout: &RamLayout,
        arriving: Option<&[disks::Arriving]>,
    ) -> Result<Admitted, Refusal> {
        self.check_open()?;
        names::check(&spec.name).map_err(Refusal::bad_request)?;
        let backend = self.backend(&spec.backend)?;
        let claim = self.registry.claim(&spec.name, "is arriving")?;
        let dir = self.state.create_guest(spec, true).map_err(Refusal::failed)?;
        let made = arriving.map_or(Ok(()), |arriving| disks::store(&dir, arriving));
        made.map_err(Refusal::failed)
            .inspect_err(|_| state_dir::remove_guest(&dir))?;
        let vm = backend.launch_incoming(spec, layout, &dir).map_err(|error| {
            state_dir::remove_guest(&dir);
            of_guest(error)
        })?;
        let admitted = Admitted {
            vm: vm.clone(),
            dir: GuestDir::new(dir.clone()),
        };
        claim.settle(Some(Slot::Arriving {
            member: Member { vm, dir },
            id: new_id(&spec.name),
        }));
        Ok(admitted)
    }

    /// The same for a guest whose disks come with it: they lie where there is room for them here.
    fn create_with_disks(
        &self,
        spec: &GuestSpec,
        layout: &RamLayout,
        plan: &DiskPlan,
    ) -> Result<(Admitted, Vec<PlacedDisk>), Refusal> {
        self.check_open()?;
        names::check(&spec.name).map_err(Refusal::bad_request)?;
        let backend = self.backend(&spec.backend)?;
        // The name may be taken: that would come out later as well, but now nothing is made yet.
        drop(self.registry.claim(&spec.name, "is arriving")?);
        let infos: Vec<DiskInfo> = plan.disks.iter().map(|planned| planned.disk.clone()).collect();
        let arriving = disks::make_room(&**backend, spec, plan)?;
        let places: Vec<PlacedDisk> = arriving.iter().map(|disk| disk.place.clone()).collect();
        let admitted = backend
            .place_disks(spec, &infos, &places)
            .map_err(of_guest)
            .and_then(|placed| self.create_incoming(&placed, layout, Some(&arriving)));
        match admitted {
            Ok(admitted) => Ok((admitted, places)),
            Err(refusal) => {
                disks::give_up(&spec.name, &arriving, "its guest was refused");
                Err(refusal)
            }
        }
    }
}
