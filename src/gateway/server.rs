//! The HTTP server: HTTP/1.1 and HTTP/2 without TLS, with a limit on everything that a client can
//! make it keep or wait for.

use crate::exchange::Response;
use crate::gateway::Gateway;
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

/// How long a client may take to send the headers of a request.
const HEADERS: Duration = Duration::from_secs(10);
/// How large the headers of a request may be together.
const HEADER_BYTES: usize = 64 * 1024;
/// How many requests of one HTTP/2 connection are worked on at once.
const STREAMS: u32 = 256;
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
    tokio::time::timeout(grace, graceful.shutdown()).await.is_ok()
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    gateway: &Arc<Gateway>,
    graceful: &GracefulShutdown,
) {
    let _ = stream.set_nodelay(true);
    let gateway = gateway.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(written(gateway.respond(request, peer).await)) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES as u32)
        .keep_alive_interval(Duration::from_secs(20));
    let served = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let served = graceful.watch(served);
    tokio::spawn(async move {
        if let Err(error) = served.await {
            debug!(%peer, %error, "a connection ended");
        }
    });
}

fn written(response: Response) -> hyper::Response<Full<Bytes>> {
    let Response { status, headers, body } = response;
    let mut written = hyper::Response::new(Full::new(body));
    *written.status_mut() = status;
    *written.headers_mut() = headers;
    written
}
