# `nix build .#container && podman load < result` (or docker). Configured by environment variables.
{
  dockerTools,
  lib,
  nats-webhook-relay,
}:
let
  user = "65534";
  cache = "/var/cache/nats-webhook-relay";
in
dockerTools.buildLayeredImage {
  name = nats-webhook-relay.pname;
  tag = nats-webhook-relay.version;
  contents = [ dockerTools.caCertificates ];
  # Compiled plugins. What lies there is executed, so it must be the user's alone.
  fakeRootCommands = ''
    install -d -m 755 ./var ./var/cache
    install -d -m 700 -o ${user} -g ${user} .${cache}
  '';
  config = {
    Entrypoint = [ (lib.getExe nats-webhook-relay) ];
    Env = [
      "PLUGIN_CACHE=${cache}"
      "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt"
    ];
    User = "${user}:${user}";
    StopSignal = "SIGTERM";
    Labels = {
      "org.opencontainers.image.title" = nats-webhook-relay.pname;
      "org.opencontainers.image.description" = nats-webhook-relay.meta.description;
      "org.opencontainers.image.version" = nats-webhook-relay.version;
      "org.opencontainers.image.licenses" = "MIT OR Apache-2.0";
    };
  };
}
