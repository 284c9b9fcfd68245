# An example plugin in Rust: a folder with NAME.wasm, which is what the module's `plugins` and PLUGINS take.
#
# rustup has a library for wasm32-wasip2 and a linker for components, nixpkgs (of June 2026) has neither. Its rustc comes
# with one for wasm32-unknown-unknown, which is enough: a plugin needs nothing of WASI but what wit/ imports. What cargo
# makes is a core module with its interface in it, and wasm-tools makes a component of that.
{
  cargo,
  lib,
  name,
  rustPlatform,
  rustc,
  stdenv,
  wasm-tools,
}:
let
  workspace = (lib.importTOML ../plugins/Cargo.toml).workspace;
  manifest = (lib.importTOML (../plugins + "/${name}/Cargo.toml")).package;
in
stdenv.mkDerivation {
  pname = "nats-webhook-relay-plugin-${name}";
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions (
      [
        ../plugins/Cargo.lock
        ../plugins/Cargo.toml
        ../wit
      ]
      ++ map (member: ../plugins + "/${member}") workspace.members
    );
  };

  cargoRoot = "plugins";
  cargoDeps = rustPlatform.importCargoLock { lockFile = ../plugins/Cargo.lock; };

  strictDeps = true;
  nativeBuildInputs = [
    cargo
    rustPlatform.cargoSetupHook
    rustc
    rustc.llvmPackages.lld
    wasm-tools
  ];

  buildPhase = ''
    runHook preBuild
    cd plugins
    cargo build --locked --offline --release --package ${name} --target wasm32-unknown-unknown
    wasm-tools component new --output ${name}.wasm \
      target/wasm32-unknown-unknown/release/${lib.replaceStrings [ "-" ] [ "_" ] name}.wasm
    runHook postBuild
  '';

  doCheck = true;
  checkPhase = ''
    runHook preCheck
    cargo test --locked --offline --package ${name}
    runHook postCheck
  '';

  installPhase = ''
    runHook preInstall
    install -D --mode 444 --target-directory $out ${name}.wasm
    runHook postInstall
  '';
  dontStrip = true;

  meta = {
    inherit (manifest) description;
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    platforms = lib.platforms.unix;
  };
}
