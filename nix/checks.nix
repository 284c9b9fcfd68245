# What `nix flake check` looks at beside the packages. Outside of Nix, .ci/run and scripts/check-nix do the same.
{
  module,
  nixpkgs,
  pkgs,
  relay,
}:
let
  inherit (nixpkgs) lib;

  cargo =
    name: tool: command:
    pkgs.stdenv.mkDerivation {
      pname = "nats-webhook-relay-${name}";
      inherit (relay) src version;
      cargoDeps = pkgs.rustPlatform.importCargoLock { lockFile = ../Cargo.lock; };
      nativeBuildInputs = [
        pkgs.cargo
        pkgs.rustPlatform.cargoSetupHook
        pkgs.rustc
        tool
      ];
      buildPhase = command;
      installPhase = "touch $out";
    };

  tests = import ./tests { inherit lib; };

  # The document's configuration, in a whole NixOS.
  nixos = lib.nixosSystem {
    modules = [
      module
      {
        nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
        boot.isContainer = true;
        system.stateVersion = lib.trivial.release;
        services.nats-webhook-relay = {
          enable = true;
          webhookDestination = "https://my-domain.com/api/cache/webhook";
          natsAddress = "nats://my-nats";
          natsUser = "user";
          natsPassword = "password";
          natsSubjectPrefix = "cms.cache";
          natsRelayedSubjectPrefix = "relayed.cache";
        };
      }
    ];
  };
in
{
  clippy = cargo "clippy" pkgs.clippy "cargo clippy --locked --offline --all-targets -- -D warnings";
  fmt = cargo "fmt" pkgs.rustfmt "cargo fmt --check";

  nixfmt = pkgs.runCommandLocal "nixfmt" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    nixfmt --check ${../flake.nix} $(find ${./.} -name '*.nix')
    touch $out
  '';

  # The tests of scripts/check-nix, with nixpkgs' own module system.
  module = pkgs.runCommandLocal "module" { inherit (tests.files) report; } ''
    printf %s "$report"
    [ -z "$report" ]
    touch $out
  '';
}
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
  nixos = pkgs.writeText "nats-webhook-relay.service" (
    nixos.config.systemd.units."nats-webhook-relay.service".text
  );
}
