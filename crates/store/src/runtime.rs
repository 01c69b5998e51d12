//! The one asynchronous runtime of all stores of the process; nobody outside of the crate sees it.

use std::future::Future;
use std::sync::{OnceLock, mpsc};

use tokio::runtime::{Builder, Runtime};

/// Threads that wait for object stores. Compression and file access have threads of their own.
const WORKERS: usize = 2;

/// The runtime. It lives as long as the process: dropping one where another runs is not allowed.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("vmferry-store")
            .enable_all()
            .build()
            .expect("threads for the store")
    })
}

/// Waits for `future`, which must end in bounded time. May be called from any thread, also of another runtime.
pub(crate) fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, answer) = mpsc::sync_channel(1);
    runtime().spawn(async move {
        let _ = done.send(future.await);
    });
    answer.recv().expect("a task of the store does not panic")
}
