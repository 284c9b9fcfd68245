# The NixOS module. docs/nixos.md has examples and all options.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) literalExpression mkOption types;
  cfg = config.services.nats-webhook-relay;
  options = import ./options.nix { inherit lib; };
  unit = import ./unit.nix { inherit lib pkgs; };

  instances = lib.filterAttrs (_: relay: relay.enable) cfg.instances;
  units = lib.optional cfg.enable (unit "" cfg) ++ lib.mapAttrsToList unit instances;
in
{
  # A module that is imported twice, even in two ways, counts once.
  _file = ./module.nix;
  key = toString ./module.nix;

  options.services.nats-webhook-relay = options // {
    enable = lib.mkEnableOption "the NATS webhook relay";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = literalExpression "the package of this flake";
      description = "The relay itself.";
    };

    instances = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = options // {
            enable = mkOption {
              type = types.bool;
              default = true;
              description = "Whether this relay runs.";
            };
            package = mkOption {
              type = types.package;
              default = cfg.package;
              defaultText = literalExpression "config.services.nats-webhook-relay.package";
              description = "The relay itself.";
            };
          };
        }
      );
      default = { };
      example = literalExpression ''
        {
          shop = {
            webhookDestination = "https://shop.my-domain.com/api/cache/webhook";
            natsAddress = "nats://my-nats";
            natsSubjectPrefix = "cms.cache";
            natsRelayedSubjectPrefix = "relayed.shop";
          };
        }
      '';
      description = "Further relays, gateways and services, each with the options above and a unit `nats-webhook-relay-NAME.service`. They inherit only `package` from the options above, and run unless their `enable` is false.";
    };
  };

  config = {
    assertions = lib.concatMap (unit: unit.assertions) units;
    warnings = lib.concatMap (unit: unit.warnings) units;
    systemd.services = lib.listToAttrs (map (unit: lib.nameValuePair unit.name unit.service) units);
  };
}
