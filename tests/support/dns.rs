//! A real DNS server, which says of one host what a test wants it to say.

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Metadata, ResponseCode};
use hickory_server::proto::rr::{RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};

/// The one host that the server knows.
pub const HOST: &str = "frontend.test";

/// Its addresses, or what is wrong.
type Answer = Result<Vec<IpAddr>, ResponseCode>;

pub struct Dns {
    pub address: String,
    known: Known,
    _server: Server<Known>,
}

#[derive(Clone)]
struct Known {
    answer: Arc<Mutex<Answer>>,
    queries: Arc<AtomicUsize>,
}

impl Dns {
    /// Starts a server for which the host does not exist.
    pub async fn start() -> Self {
        let answer = Arc::new(Mutex::new(Err(ResponseCode::NXDomain)));
        let known = Known { answer, queries: Arc::default() };
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Somebody else may have the port for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap().to_string();
        let mut server = Server::new(known.clone());
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(60), 16);
        Self { address, known, _server: server }
    }

    /// The host has these addresses.
    pub fn has(&self, addresses: &[IpAddr]) {
        *self.known.answer.lock().unwrap() = Ok(addresses.to_vec());
    }

    /// There is no such host.
    pub fn has_no_host(&self) {
        *self.known.answer.lock().unwrap() = Err(ResponseCode::NXDomain);
    }

    /// The server cannot say.
    pub fn fails(&self) {
        *self.known.answer.lock().unwrap() = Err(ResponseCode::ServFail);
    }

    /// Queries so far.
    pub fn queries(&self) -> usize {
        self.known.queries.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl RequestHandler for Known {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let query = request.request_info().unwrap().query;
        let answer = match query.name().to_string().trim_end_matches('.') {
            HOST => self.answer.lock().unwrap().clone(),
            _ => Err(ResponseCode::NXDomain),
        };
        let builder = MessageResponseBuilder::from_message_request(request);
        let metadata = &request.metadata;
        let sent = match answer {
            Err(code) => handle.send_response(builder.error_msg(metadata, code)).await,
            Ok(addresses) => {
                let is_asked = |address: &&IpAddr| match query.query_type() {
                    RecordType::A => address.is_ipv4(),
                    RecordType::AAAA => address.is_ipv6(),
                    _ => false,
                };
                let record = |address: &IpAddr| {
                    Record::from_rdata(query.name().into(), 3600, RData::from(*address))
                };
                let records: Vec<_> = addresses.iter().filter(is_asked).map(record).collect();
                let metadata = Metadata::response_from_request(metadata);
                let response = builder.build(metadata, &records, [], [], []);
                handle.send_response(response).await
            }
        };
        self.queries.fetch_add(1, Ordering::SeqCst);
        sent.unwrap()
    }
}
