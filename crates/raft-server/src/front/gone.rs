//! Notices that an HTTP/1 client has gone while it is told something without an end.
//!
//! A client may close its half of a connection after a request and still hear the answer, so hyper does not look for that
//! end while it answers. Whoever watches would then be found gone only with the next change.

use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Returns when the other end of `socket` sends no more, once there is an answer without an end.
pub(super) async fn gone(socket: io::Result<TcpStream>, endless: &Notify) {
    endless.notified().await;
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!("whether a client has gone is not noticed: {error}");
            return std::future::pending().await;
        }
    };
    loop {
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {
                // What it sends is read by whoever serves it; this waits for what comes after.
                let later = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
                socket.try_io(Interest::READABLE, later).ok();
            }
            Ok(_) | Err(_) => return,
        }
    }
}
