//! HTTP exchanges in messages: whatever a payload is, it is read as a request or a response that
//! can be written again, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::exchange::{nats_proxy, path, plain, roundtripper};
use nats_webhook_relay::subject::check;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(tokens) = path::to_tokens(&text) {
        assert!(tokens.is_empty() || check(&tokens).is_ok(), "{tokens}");
        let back = path::from_tokens(&tokens).unwrap();
        assert_eq!(path::to_tokens(&back).unwrap(), tokens, "{back}");
    }
    let _ = path::from_tokens(&text);
    let _ = path::to_literal_tokens(&text)
        .map(|tokens| assert!(tokens.is_empty() || check(&tokens).is_ok()));
    let payload = data.to_vec();
    if let Ok(response) = roundtripper::read_response(&payload.clone().into()) {
        assert!(response.status.as_u16() >= 200);
        let written = roundtripper::response(&response).payload;
        let again = roundtripper::read_response(&written).unwrap();
        assert_eq!(again.status, response.status);
    }
    if let Ok(request) = roundtripper::read_request(&payload)
        && let Ok((_, parcel)) = roundtripper::request(&request, "h")
    {
        let again = roundtripper::read_request(&parcel.payload).unwrap();
        assert_eq!((again.method, again.body), (request.method, request.body));
    }
    if let Ok(response) = nats_proxy::read_response(&payload) {
        let written = nats_proxy::response(&response).unwrap().payload;
        assert_eq!(nats_proxy::read_response(&written).unwrap(), response);
    }
    let _ = nats_proxy::read_request("a", &payload);
    let _ = plain::read_request("a", None, payload.clone().into());
    let _ = plain::read_response(None, payload.into());
});
