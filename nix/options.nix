# The options of one unit: those of services.nats-webhook-relay, and of each of its instances.
{ lib }:
let
  inherit (lib) literalExpression mkOption types;

  # A string with a path in it, or a path literal: neither is copied into the store. What is there already is refused.
  secretPath =
    types.addCheck types.path (path: !lib.hasPrefix "${builtins.storeDir}/" (toString path))
    // {
      name = "secretPath";
      description = "path outside the Nix store";
      descriptionClass = "noun";
    };

  value = types.oneOf [
    types.bool
    types.int
    types.str
  ];

  optional =
    type: attributes:
    mkOption (
      {
        type = types.nullOr type;
        default = null;
      }
      // attributes
    );
in
{
  command = optional (types.enum [
    "gateway"
    "serve"
  ]) {
    example = "gateway";
    description = "Subcommand that runs instead of the relay: `gateway` (HTTP to NATS) or `serve` (NATS to HTTP). Its variables belong in `settings` and `secretFiles`.";
  };

  webhookDestination = optional (types.either types.str (types.listOf types.str)) {
    example = "https://my-domain.com/api/cache/webhook";
    description = "Required. URL that each message is POSTed to, or a list of them: all must accept a message before it is republished (`WEBHOOK_DESTINATION`).";
  };

  natsAddress = optional (types.either types.str (types.listOf types.str)) {
    example = "nats://my-nats";
    description = "Required. URL of the NATS server, or a list of them (`NATS_HOST`).";
  };

  natsUser = optional types.str {
    example = "user";
    description = "User name, if the server requires one (`NATS_USER`).";
  };

  natsPassword = optional types.str {
    description = "Password of `natsUser` (`NATS_PASS`). It ends up in the Nix store, which everyone on the machine can read: prefer `natsPasswordFile`.";
  };

  natsPasswordFile = optional secretPath {
    example = "/run/secrets/nats-password";
    description = "File with the password of `natsUser` (`NATS_PASS_FILE`).";
  };

  natsCredentialsFile = optional secretPath {
    example = "/run/secrets/relay.creds";
    description = "Credentials file of NATS, with a JWT and its seed (`NATS_CREDS`).";
  };

  natsSubjectPrefix = optional types.str {
    example = "cms.cache";
    description = "Required, unless `natsSubject` is set. The relay listens on all subjects below it (`NATS_SUBJECT_PREFIX`).";
  };

  natsRelayedSubjectPrefix = optional types.str {
    example = "relayed.cache";
    description = "Required, unless `natsRelayedSubject` is set. Accepted messages are republished below it (`NATS_RELAYED_SUBJECT_PREFIX`).";
  };

  natsSubject = optional types.str {
    example = "feathers-sync";
    description = "One exact subject to listen on, instead of `natsSubjectPrefix` (`NATS_SUBJECT`).";
  };

  natsRelayedSubject = optional types.str {
    example = "relayed.feathers";
    description = "The exact subject that accepted messages are republished on. Set it together with `natsSubject`, and neither prefix (`NATS_RELAYED_SUBJECT`).";
  };

  natsFailedSubjectPrefix = optional types.str {
    example = "failed.cache";
    description = "Failed messages are published below it, with headers that say why (`NATS_FAILED_SUBJECT_PREFIX`).";
  };

  natsStream = optional types.str {
    example = "CMS";
    description = "JetStream stream that captures the messages to relay (`NATS_STREAM`).";
  };

  natsConsumer = optional types.str {
    example = "my-frontend";
    description = "Name of the durable consumer on `natsStream` (`NATS_CONSUMER`).";
  };

  natsDeliver = optional types.str {
    example = "6h";
    description = "Where a new consumer starts: `new`, `all`, `last-per-subject`, or an age (`NATS_DELIVER`).";
  };

  webhookSecretFile = optional secretPath {
    example = "/run/secrets/webhook";
    description = "File with the secret that signs webhook calls (`WEBHOOK_SECRET_FILE`).";
  };

  log = mkOption {
    type = types.str;
    default = "info";
    example = "warn";
    description = "What to log: a level, or `target=level,...` (`RUST_LOG`).";
  };

  plugins = mkOption {
    type = types.listOf types.path;
    default = [ ];
    example = literalExpression "[ inputs.nats-webhook-relay.packages.\${pkgs.stdenv.hostPlatform.system}.plugin-nextjs-tags ./plugins/tags.wasm ]";
    description = "Plugins, in order: `.wasm` files, and folders or packages with such files at their top level (`PLUGINS`). The build checks those from the store, and fails if the relay could not use one. A string is a path that the relay reads when it starts.";
  };

  pluginSettings = mkOption {
    type = types.attrsOf (types.attrsOf value);
    default = { };
    example = literalExpression ''{ nextjs-tags.TAGS = "{entity} {entity}:{id}"; }'';
    description = "Settings of the plugins, by the name of the file without `.wasm`: `nextjs-tags.TAGS` becomes `PLUGIN_NEXTJS_TAGS_TAGS`.";
  };

  pluginSecretFiles = mkOption {
    type = types.attrsOf (types.attrsOf secretPath);
    default = { };
    example = literalExpression ''{ tags.TOKEN = "/run/secrets/tags-token"; }'';
    description = "Files with secret settings of the plugins: `tags.TOKEN` becomes `PLUGIN_TAGS_TOKEN_FILE`.";
  };

  settings = mkOption {
    type = types.attrsOf (types.nullOr value);
    default = { };
    example = literalExpression ''{ MAX_IN_FLIGHT = 32; WEBHOOK_TIMEOUT = "10s"; NATS_QUEUE_GROUP = "web"; }'';
    description = "Any other variable of the relay, by its name. It takes precedence over the option that sets the same variable; `null` unsets it.";
  };

  secretFiles = mkOption {
    type = types.attrsOf secretPath;
    default = { };
    example = literalExpression ''{ WEBHOOK_HEADERS = "/run/secrets/webhook-headers"; }'';
    description = "Files with the values of secret variables: `WEBHOOK_HEADERS` becomes `WEBHOOK_HEADERS_FILE`. A variable that is a path itself, such as `NATS_KEY`, is set to the path.";
  };

  environmentFile = mkOption {
    type = types.either secretPath (types.listOf secretPath);
    default = [ ];
    example = "/run/secrets/relay.env";
    description = "File with variables, or a list of such files, in the format of systemd's `EnvironmentFile`. They take precedence over all other options. Do not set `PLUGINS` and `SHUTDOWN_GRACE` there, because the unit depends on them.";
  };

  user = optional types.str {
    description = "Existing user to run as. By default, systemd creates a user for as long as the relay runs (`DynamicUser`).";
  };

  group = optional types.str {
    description = "Existing group to run as.";
  };
}
