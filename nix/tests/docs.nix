# The table of options in docs/nixos.md.
{ lib, options }:
let
  all = options.services.nats-webhook-relay;
  names = lib.attrNames all;
  # What everybody needs first, then by name.
  first = [
    "enable"
    "webhookDestination"
    "natsAddress"
    "natsSubjectPrefix"
    "natsRelayedSubjectPrefix"
  ];
  last = [ "instances" ];
  order = first ++ lib.filter (name: !lib.elem name (first ++ last ++ [ "_module" ])) names ++ last;

  default =
    option:
    if option ? defaultText then
      option.defaultText.text
    else if option.default == [ ] || option.default == { } then
      builtins.replaceStrings [ "[]" "{}" ] [ "[ ]" "{ }" ] (builtins.toJSON option.default)
    else
      builtins.toJSON option.default;
  row =
    name:
    let
      option = all.${name};
    in
    "| `${name}` | ${option.type.description} | `${default option}` | ${option.description} |\n";
in
''
  | Option | Type | Default | Meaning |
  |---|---|---|---|
''
+ lib.concatMapStringsSep "" row order
