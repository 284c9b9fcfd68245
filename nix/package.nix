# The relay, with its tests.
{
  installShellFiles,
  lib,
  nats-server,
  rustPlatform,
  stdenv,
}:
let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../clippy.toml
      ../rustfmt.toml
      ../benches
      ../examples
      # A member of the workspace.
      ../fuzz
      ../src
      ../wit
      # Compared with the program by its tests.
      ../.env.example
      ../charts
      ../README.md
      ../docs
      # Two of these need packages of npm and PyPI, which the sandbox cannot fetch, and one all files with links.
      (lib.fileset.difference ../tests (
        lib.fileset.unions [
          ../tests/documents.rs
          ../tests/plugin_languages.rs
          ../tests/standard_webhooks.rs
        ]
      ))
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ installShellFiles ];
  # The program makes them itself.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    mkdir man
    $out/bin/${manifest.name} generate man man
    installManPage man/*
    for shell in bash fish zsh; do
      $out/bin/${manifest.name} generate completions $shell >completions.$shell
      installShellCompletion --cmd ${manifest.name} --$shell completions.$shell
    done
  '';

  # As `cargo test` does it: with link-time optimisation of every test the check would take far longer than the build.
  checkType = "debug";
  nativeCheckInputs = [ nats-server ];
  preCheck = ''
    export NATS_SERVER=${lib.getExe nats-server}
    export HOME=$(mktemp -d)
  '';
  # They talk to servers on the loopback interface.
  __darwinAllowLocalNetworking = true;

  meta = {
    inherit (manifest) description;
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    mainProgram = manifest.name;
    platforms = lib.platforms.unix;
  };
}
