//! What holds the clients of a load back while their guest is not there: between its end and its resume from a checkpoint.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whether clients may talk to the guest.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Clients that talk to the guest.
    inside: usize,
}

impl Gate {
    /// Waits until it is open, and lets a client in.
    pub(super) fn enter(&self) {
        let mut state = self.lock();
        while state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inside += 1;
    }

    /// The client is done talking.
    pub(super) fn leave(&self) {
        self.lock().inside -= 1;
        self.changed.notify_all();
    }

    /// Whether those inside are to leave soon.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Closes it, and waits until nobody is inside.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        while state.inside > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens it again.
    pub(super) fn open(&self) {
        self.lock().closed = false;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let (gate, inside) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                thread::spawn(move || {
                    for _ in 0..200 {
                        gate.enter();
                        inside.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        gate.leave();
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            gate.close();
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            assert!(gate.is_closed());
            gate.open();
            thread::yield_now();
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
    }
}
