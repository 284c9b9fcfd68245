# `nix build .#container && podman load < result` (or docker). Configured by environment variables. Layout, user and paths
# are those of the Dockerfile.
{
  dockerTools,
  lib,
  nats-webhook-relay,
}:
let
  user = "65534";
  cache = "/var/cache/nats-webhook-relay";
  second = 1000 * 1000 * 1000;
in
dockerTools.buildLayeredImage {
  name = nats-webhook-relay.pname;
  tag = nats-webhook-relay.version;
  # The program in /bin, the certificate authorities in /etc/ssl/certs.
  contents = [
    nats-webhook-relay
    dockerTools.caCertificates
  ];
  # Plugins are mounted on /plugins. Compiled plugins are executed, so their folder must be the user's alone.
  fakeRootCommands = ''
    install -d -m 755 ./plugins ./var ./var/cache
    install -d -m 700 -o ${user} -g ${user} .${cache}
  '';
  config = {
    Entrypoint = [ "/bin/nats-webhook-relay" ];
    Env = [
      "HTTP_LISTEN=127.0.0.1:9090"
      "PLUGIN_CACHE=${cache}"
      "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt"
    ];
    User = "${user}:${user}";
    Volumes.${cache} = { };
    StopSignal = "SIGTERM";
    Healthcheck = {
      Test = [
        "CMD"
        "/bin/nats-webhook-relay"
        "healthcheck"
      ];
      Interval = 30 * second;
      Timeout = 10 * second;
      StartPeriod = 10 * second;
    };
    Labels = {
      "org.opencontainers.image.title" = nats-webhook-relay.pname;
      "org.opencontainers.image.description" = nats-webhook-relay.meta.description;
      "org.opencontainers.image.version" = nats-webhook-relay.version;
      "org.opencontainers.image.licenses" = "MIT OR Apache-2.0";
      "org.opencontainers.image.source" = "https://github.com/wunderwerkio/nats-webhook-relay";
    };
  };
}
