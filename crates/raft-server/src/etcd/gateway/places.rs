//! How many requests of the gateway may be in flight: in etcd all of them travel over one connection of gRPC, so what
//! `--max-concurrent-streams` allows one client is what they share. Whoever comes then waits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places that there are; none are counted without a limit.
#[derive(Clone, Debug)]
pub(super) struct Places(Option<Arc<Semaphore>>);

/// A place. In the extensions of a request, for whoever goes on after the response has ended.
#[derive(Clone, Debug)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(count: Option<u32>) -> Self {
        let count = count.map(|count| usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS));
        Self(count.map(|count| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))))
    }

    /// Waits for a place, which is given back when the answer has ended.
    pub(super) async fn take(self, mut request: Request, next: Next) -> Response {
        let Some(places) = self.0 else { return next.run(request).await };
        let Ok(permit) = places.acquire_owned().await else {
            // They are never closed.
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        let place = Place { _permit: Arc::new(permit) };
        request.extensions_mut().insert(place.clone());
        next.run(request).await.map(|body| Body::new(Held { body, _place: place }))
    }
}

/// A body that has a place until it ends.
struct Held {
    body: Body,
    _place: Place,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
