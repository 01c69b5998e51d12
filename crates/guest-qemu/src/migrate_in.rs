//! A QEMU guest as the destination of a migration.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use vmferry_guest::{FaultMode, GuestError, GuestState, MigrateIn, PageFaults, Result};

use crate::faults::QemuFaults;
use crate::guest::{Phase, QemuGuest};
use crate::migrate_out::STATE_FD_NAME;
use crate::qmp::Cursor;
use crate::qmp::commands::{AnnounceSelf, MigrateIncoming};

/// Announcements: one at once, then after pauses that grow, so that a switch that missed the first learns soon.
const ANNOUNCEMENTS: AnnounceSelf = AnnounceSelf {
    initial: 10,
    max: 550,
    rounds: 5,
    step: 100,
};

/// What is being done, in errors.
const LOADING: &str = "loading the device state";

/// QEMU waits for the device state.
pub(crate) struct Incoming {
    /// Our end of the socket on which it does.
    socket: UnixStream,
    /// Since when.
    since: Cursor,
}

impl MigrateIn for QemuGuest {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        Ok(Arc::new(QemuFaults::register(self, mode)?))
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        Ok(Arc::new(QemuFaults::take_over(self)?))
    }

    fn prepare_load(&self) -> Result<()> {
        if *self.phase() != Phase::Incoming {
            return Err(self.wrong_state("not waiting for a migration", "incoming"));
        }
        let ready = self.begin_incoming()?;
        *self.incoming.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
        Ok(())
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
    /// Has QEMU wait for the device state on a socket.
    fn begin_incoming(&self) -> Result<Incoming> {
        let socket = self.offer_state_socket()?;
        let since = self.qmp.events().now();
        let uri = format!("fd:{STATE_FD_NAME}");
        self.run(&MigrateIncoming { uri }, LOADING)?;
        Ok(Incoming { socket, since })
    }

    fn load(&self, state: &[u8]) -> Result<()> {
        let ready = self
            .incoming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Incoming { mut socket, since } = match ready {
            Some(ready) => ready,
            None => self.begin_incoming()?,
        };
        // QEMU reads while it may wait for pages. It ends the stream early only when it fails, or at the end of
        // what it needs: its own verdict follows by event, or by its end.
        let written = socket
            .write_all(state)
            .and_then(|()| socket.shutdown(std::net::Shutdown::Write));
        match self.wait_for_migration(since, None, LOADING) {
            Err(error @ GuestError::Gone { .. }) => Err(error),
            Err(error) => Err(match written {
                Err(cut) if cut.kind() != std::io::ErrorKind::BrokenPipe => {
                    GuestError::operation(LOADING, cut)
                }
                _ => error,
            }),
            Ok(()) => Ok(()),
        }
    }
}
