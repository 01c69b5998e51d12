//! A QEMU guest as the destination of a migration.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmferry_guest::{FaultMode, GuestError, GuestState, MigrateIn, PageFaults, Result};

use crate::faults::QemuFaults;
use crate::guest::{Phase, QemuGuest};
use crate::migrate_out::STATE_FD_NAME;
use crate::qmp::commands::{AnnounceSelf, GetFd, MigrateIncoming};

/// Announcements: one at once, then after pauses that grow, so that a switch that missed the first learns soon.
const ANNOUNCEMENTS: AnnounceSelf = AnnounceSelf {
    initial: 10,
    max: 550,
    rounds: 5,
    step: 100,
};

impl MigrateIn for QemuGuest {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        Ok(Arc::new(QemuFaults::register(self, mode)?))
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        Ok(Arc::new(QemuFaults::take_over(self)?))
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        let mut phase = self.phase();
        if *phase != Phase::Incoming {
            return Err(self.wrong_state(format!("{:?}", *phase).to_lowercase(), "incoming"));
        }
        // Bytes may have been taken in before an error: QEMU accepts no second attempt.
        *phase = Phase::Broken;
        self.load(state)?;
        *phase = Phase::Live;
        self.set_state(GuestState::Paused);
        Ok(())
    }

    fn announce(&self) -> Result<()> {
        self.run(&ANNOUNCEMENTS, "announcing the guest to the network")
            .map(drop)
    }
}

impl QemuGuest {
    fn load(&self, state: &[u8]) -> Result<()> {
        let doing = "loading the device state";
        let (mut ours, theirs) = UnixStream::pair().map_err(|error| GuestError::operation(doing, error))?;
        let name = GetFd {
            fdname: STATE_FD_NAME.into(),
        };
        self.asked(self.qmp.run_with_fds(&name, &[theirs.as_fd()]), doing)?;
        drop(theirs);
        let cursor = self.qmp.events().now();
        self.run(
            &MigrateIncoming {
                uri: format!("fd:{STATE_FD_NAME}"),
            },
            doing,
        )?;
        // QEMU reads while it may wait for pages. It ends the stream early only when it fails, or at the end of
        // what it needs: its own verdict follows by event, or by its end.
        let written = ours
            .write_all(state)
            .and_then(|()| ours.shutdown(std::net::Shutdown::Write));
        match self.wait_for_migration(cursor, None, doing) {
            Err(error @ GuestError::Gone { .. }) => Err(error),
            Err(error) => Err(match written {
                Err(cut) if cut.kind() != std::io::ErrorKind::BrokenPipe => GuestError::operation(doing, cut),
                _ => error,
            }),
            Ok(()) => Ok(()),
        }
    }
}
