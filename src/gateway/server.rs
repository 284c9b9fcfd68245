//! The HTTP server: HTTP/1.1 and HTTP/2 without TLS, with a limit on everything that a client can
//! make it keep or wait for.

use crate::exchange::Response;
use crate::gateway::Gateway;
use crate::gateway::patience::{Client, Untaken};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::bytes::Bytes;
use tracing::{debug, warn};

/// How long a client may take to send the headers of its first request, and at least to take an
/// answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection waits for another request. Reverse proxies keep connections for
/// one or two minutes; a request that they send while we close one is lost to them.
const IDLE: Duration = Duration::from_secs(180);
/// How large the headers of a request may be together.
const HEADER_BYTES: usize = 64 * 1024;
/// How many requests of one HTTP/2 connection are worked on at once.
const STREAMS: u32 = 256;
/// How often to look at the end whether all requests are finished, whatever connections there are.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait when a connection cannot be accepted, for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `stop` resolves, then finishes what is under way within `grace`. Returns whether
/// all of it was finished.
pub(crate) async fn serve(
    listener: TcpListener,
    gateway: Gateway,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> bool {
    let gateway = Arc::new(gateway);
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => connection(stream, peer, &gateway, &graceful),
            Err(error) => {
                warn!(%error, "cannot accept a connection, retrying");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    let finished = async {
        tokio::time::sleep(LOOK).await;
        while gateway.is_working() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let ended = async {
        tokio::select! {
            () = graceful.shutdown() => {}
            () = finished => {}
        }
    };
    tokio::time::timeout(grace, ended).await.is_ok()
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    gateway: &Arc<Gateway>,
    graceful: &GracefulShutdown,
) {
    let _ = stream.set_nodelay(true);
    let client = Arc::new(Client::default());
    let slow = client.clone().is_too_slow(PATIENCE, gateway.settings.timeout.max(PATIENCE));
    let gateway = gateway.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        client.has_asked();
        let (gateway, client) = (gateway.clone(), client.clone());
        async move {
            let (response, place) = gateway.respond(request, peer).await;
            Ok::<_, Infallible>(written(response, |body| client.untaken(body, place)))
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES as u32)
        .keep_alive_interval(Duration::from_secs(20));
    let served = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let served = graceful.watch(served);
    tokio::spawn(async move {
        tokio::select! {
            served = served => if let Err(error) = served {
                debug!(%peer, %error, "a connection ended");
            },
            reason = slow => debug!(%peer, reason, "closed a connection"),
        }
    });
}

fn written(
    response: Response,
    untaken: impl FnOnce(Bytes) -> Untaken,
) -> hyper::Response<Full<Untaken>> {
    let Response { status, headers, body } = response;
    let mut written = hyper::Response::new(Full::new(untaken(body)));
    *written.status_mut() = status;
    *written.headers_mut() = headers;
    written
}
