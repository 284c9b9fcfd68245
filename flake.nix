{
  description = "Relays NATS messages to a webhook and republishes each one only after the webhook has accepted it";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAllSystems =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
          "aarch64-darwin"
          "x86_64-darwin"
        ] (system: f nixpkgs.legacyPackages.${system});

      # The example plugins in Rust; noop is for the benchmark only.
      pluginNames =
        lib.filter (name: name != "noop")
          (lib.importTOML ./plugins/Cargo.toml).workspace.members;

      packagesOf =
        pkgs:
        let
          relay = pkgs.callPackage ./nix/package.nix { };
        in
        {
          nats-webhook-relay = relay;
          default = relay;
        }
        // lib.listToAttrs (
          map (
            name: lib.nameValuePair "plugin-${name}" (pkgs.callPackage ./nix/plugin.nix { inherit name; })
          ) pluginNames
        )
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          container = pkgs.callPackage ./nix/container.nix { nats-webhook-relay = relay; };
        };
    in
    {
      packages = forAllSystems packagesOf;

      overlays.default = final: _: {
        nats-webhook-relay = final.callPackage ./nix/package.nix { };
        nats-webhook-relay-plugins = lib.genAttrs pluginNames (
          name: final.callPackage ./nix/plugin.nix { inherit name; }
        );
      };

      nixosModules.default =
        { lib, pkgs, ... }:
        {
          _file = ./flake.nix;
          key = "${toString ./flake.nix}#nixosModules.default";
          imports = [ ./nix/module.nix ];
          services.nats-webhook-relay.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      apps = forAllSystems (
        pkgs:
        let
          demo = pkgs.callPackage ./nix/demo.nix {
            nats-webhook-relay = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
        in
        {
          demo = {
            type = "app";
            program = lib.getExe demo;
            meta.description = "The relay at work between a real nats-server and a real endpoint";
          };
        }
      );

      # In this shell scripts/build-plugins can not build plugins in Rust, because nixpkgs has no library for
      # wasm32-wasip2: `nix build .#plugin-NAME` builds them (see nix/plugin.nix). Those in JavaScript and Python use
      # programs of npm and PyPI that were made for other systems, and were not tried on NixOS.
      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [
            cargo
            cargo-deny
            clippy
            rust-analyzer
            rustc
            rustc.llvmPackages.lld
            rustfmt
            wasm-tools
            # They fetch componentize-js and componentize-py, which nixpkgs does not have.
            nodejs
            python3
            natscli
            nats-server
            deadnix
            nixfmt
          ];
          env.RUST_SRC_PATH = "${pkgs.rustPlatform.rustLibSrc}";
        };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-tree);

      checks = forAllSystems (
        pkgs:
        let
          packages = self.packages.${pkgs.stdenv.hostPlatform.system};
        in
        # The package runs the relay's tests, a plugin its own.
        removeAttrs packages [ "default" ]
        // import ./nix/checks.nix {
          inherit pkgs nixpkgs;
          relay = packages.default;
          module = self.nixosModules.default;
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          vm = pkgs.testers.runNixOSTest (
            import ./nix/vm-test.nix {
              module = self.nixosModules.default;
              plugin = packages.plugin-nextjs-tags;
            }
          );
        }
      );
    };
}
