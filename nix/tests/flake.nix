# flake.nix and all that it builds, with stand-ins for nixpkgs: whether every name is known, every file there and every
# value of the right shape. Nothing is built.
{
  lib,
  is,
  nixos,
}:
let
  systems = [
    "aarch64-darwin"
    "aarch64-linux"
    "x86_64-darwin"
    "x86_64-linux"
  ];

  program = name: {
    type = "derivation";
    inherit name;
    outPath = "${builtins.storeDir}/00000000000000000000000000000000-${name}";
    meta.mainProgram = name;
  };
  # A derivation that can not be without a name, and whose other attributes are its own to look at.
  build =
    arguments:
    let
      name = arguments.name or "${arguments.pname}-${arguments.version}";
    in
    program name // arguments;
  # Files have to exist.
  file = path: if builtins.pathExists path then [ path ] else throw "${toString path} does not exist";
  files = set: if builtins.isList set then set else file set;

  lib' = lib // {
    fileset = {
      unions = lib.concatMap files;
      difference = a: b: builtins.seq (files b) (files a);
      toSource = { root, fileset }: builtins.seq (file root) (map toString fileset);
    };
    licenses = {
      mit = "mit";
      asl20 = "asl20";
    };
    platforms.unix = [ "unix" ];
    trivial.release = "26.11";
    nixosSystem =
      { modules }:
      builtins.deepSeq modules {
        config.systemd.units."nats-webhook-relay.service".text = "";
      };
  };

  pkgsFor =
    system:
    let
      programs = lib.genAttrs [
        "cargo"
        "cargo-deny"
        "clippy"
        "deadnix"
        "installShellFiles"
        "nats-server"
        "natscli"
        "nixfmt"
        "nixfmt-tree"
        "nodejs"
        "python3"
        "rust-analyzer"
        "rustfmt"
        "wasm-tools"
      ] program;
      pkgs = programs // {
        inherit pkgs;
        lib = lib';
        callPackage =
          path: given:
          let
            function = import path;
          in
          function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // given);
        dockerTools = {
          buildLayeredImage = build;
          caCertificates = program "ca-certificates";
        };
        mkShell = arguments: build (arguments // { name = "shell"; });
        runCommandLocal =
          name: environment: script:
          build (environment // { inherit name script; });
        rustPlatform = {
          buildRustPackage = arguments: builtins.seq (file arguments.cargoLock.lockFile) (build arguments);
          cargoSetupHook = program "cargo-setup-hook";
          importCargoLock = { lockFile }: builtins.seq (file lockFile) (program "vendor");
          rustLibSrc = program "rust-lib-src";
        };
        rustc = program "rustc" // {
          llvmPackages.lld = program "lld";
        };
        stdenv = {
          mkDerivation = build;
          buildPlatform.canExecute = platform: platform.system == system;
          hostPlatform = {
            inherit system;
            isLinux = lib.hasSuffix "-linux" system;
          };
        };
        testers.runNixOSTest =
          test: build (test // { nodes = [ (test.nodes.machine { inherit lib pkgs; }) ]; });
        writeShellApplication = build;
        writeText = name: text: build { inherit name text; };
      };
    in
    pkgs;

  nixpkgs = {
    lib = lib';
    legacyPackages = lib.genAttrs systems pkgsFor;
  };
  self = (import ../../flake.nix).outputs { inherit self nixpkgs; };
  outputs = removeAttrs self [
    "nixosModules"
    "overlays"
  ];

  # Everything that a build would be given, except functions, and the report that this is a part of.
  force =
    value:
    if builtins.isFunction value then
      true
    else if builtins.isList value then
      builtins.all force value
    else if builtins.isAttrs value then
      builtins.all (name: name == "report" || force value.${name}) (lib.attrNames value)
    else
      builtins.seq value true;
  names = lib.mapAttrs (_: lib.attrNames);
  plugins = [
    "plugin-cloudevents"
    "plugin-nextjs-tags"
  ];
  linux = lib.filter (lib.hasSuffix "-linux") systems;
  test = self.checks.x86_64-linux.vm;
  overlaid = self.overlays.default (pkgsFor "x86_64-linux") { };
in
{
  inherit (test) testScript;

  tests = {
    "every system has its outputs" = is (lib.mapAttrs (_: lib.attrNames) outputs) (
      lib.genAttrs [
        "apps"
        "checks"
        "devShells"
        "formatter"
        "packages"
      ] (_: systems)
    );
    "packages" = is (names self.packages) (
      lib.genAttrs systems (
        system:
        lib.optional (lib.elem system linux) "container"
        ++ [
          "default"
          "nats-webhook-relay"
        ]
        ++ plugins
      )
    );
    "checks" = is (names self.checks) (
      lib.genAttrs systems (
        system:
        [ "clippy" ]
        ++ lib.optional (lib.elem system linux) "container"
        ++ [
          "fmt"
          "module"
          "nats-webhook-relay"
          "nixfmt"
        ]
        ++ lib.optional (lib.elem system linux) "nixos"
        ++ plugins
        ++ lib.optional (lib.elem system linux) "vm"
      )
    );
    "everything can be evaluated" = is (force outputs) true;
    "a plugin is a folder with the file that has its name" =
      is
        (map
          (
            part:
            lib.hasInfix part (
              self.packages.x86_64-linux.plugin-nextjs-tags.buildPhase
              + self.packages.x86_64-linux.plugin-nextjs-tags.installPhase
            )
          )
          [
            "release/nextjs_tags.wasm"
            "--target-directory $out nextjs-tags.wasm"
          ]
        )
        [
          true
          true
        ];
    "the overlay has the same packages" =
      is
        [
          overlaid.nats-webhook-relay.name
          (lib.attrNames overlaid.nats-webhook-relay-plugins)
        ]
        [
          self.packages.x86_64-linux.default.name
          [
            "cloudevents"
            "nextjs-tags"
          ]
        ];
    "the machine of the test is configured without a mistake" =
      let
        machine = lib.evalModules {
          specialArgs.pkgs = pkgsFor "x86_64-linux" // {
            coreutils = program "coreutils";
            stdenv = {
              hostPlatform.system = "x86_64-linux";
              buildPlatform.canExecute = _: true;
            };
          };
          modules = [
            nixos
            {
              options.environment.systemPackages = lib.mkOption {
                type = lib.types.listOf lib.types.package;
              };
            }
            (import ../vm-test.nix {
              module = self.nixosModules.default;
              plugin = self.packages.x86_64-linux.plugin-nextjs-tags;
            }).nodes.machine
          ];
        };
      in
      is (lib.filter (it: !it.assertion) machine.config.assertions ++ machine.config.warnings) [ ];
  };
}
