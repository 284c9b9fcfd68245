# What scripts/demo runs, built by Nix.
{
  cargo,
  lib,
  nats-server,
  nats-webhook-relay,
  rustPlatform,
  rustc,
  stdenv,
  writeShellApplication,
}:
let
  demo = stdenv.mkDerivation {
    pname = "nats-webhook-relay-demo";
    inherit (nats-webhook-relay) src version;
    cargoDeps = rustPlatform.importCargoLock { lockFile = ../Cargo.lock; };
    nativeBuildInputs = [
      cargo
      rustPlatform.cargoSetupHook
      rustc
    ];
    buildPhase = ''
      runHook preBuild
      cargo build --locked --offline --bin nats-webhook-relay --example demo
      runHook postBuild
    '';
    # The example looks for the relay in the folder above its own.
    installPhase = ''
      runHook preInstall
      install -D --target-directory $out/libexec target/debug/nats-webhook-relay
      install -D --target-directory $out/libexec/examples target/debug/examples/demo
      runHook postInstall
    '';
  };
in
writeShellApplication {
  name = "nats-webhook-relay-demo";
  text = ''
    NATS_SERVER=${lib.getExe nats-server} exec ${demo}/libexec/examples/demo
  '';
}
