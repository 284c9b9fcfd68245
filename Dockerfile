# syntax=docker/dockerfile:1
# docker build --tag nats-webhook-relay .
#
# The image has a static binary, the certificate authorities, and a folder for compiled plugins; no shell and no libraries.
# Layout, user and paths are those of the flake's container (nix/container.nix).
FROM rust:1.95-alpine AS build
# The compiler and musl's headers are for the parts in C (ring, zstd, mimalloc).
# hadolint ignore=DL3018
RUN apk add --no-cache build-base ca-certificates
WORKDIR /source
COPY . .
# Alpine's Rust builds static binaries for musl. Each platform has caches of its own.
ARG TARGETARCH
RUN --mount=type=cache,id=registry-$TARGETARCH,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=target-$TARGETARCH,target=/source/target,sharing=locked \
    cargo build --locked --release --bin nats-webhook-relay \
    && install -D -s target/release/nats-webhook-relay /image/bin/nats-webhook-relay
# Compiled plugins are executed, so the folder must be the user's alone. Plugins are mounted on /plugins.
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-bundle.crt \
    && install -d -m 755 /image/plugins /image/var/cache \
    && install -d -m 700 -o 65534 -g 65534 /image/var/cache/nats-webhook-relay

FROM scratch
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="nats-webhook-relay" \
    org.opencontainers.image.description="Relays NATS messages to a webhook and republishes each one only after the webhook has accepted it" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.source="https://github.com/wunderwerkio/nats-webhook-relay"
COPY --from=build /image/ /
ENV HTTP_LISTEN=127.0.0.1:9090 \
    PLUGIN_CACHE=/var/cache/nats-webhook-relay \
    SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt
USER 65534:65534
VOLUME /var/cache/nats-webhook-relay
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["/bin/nats-webhook-relay", "healthcheck"]
ENTRYPOINT ["/bin/nats-webhook-relay"]
