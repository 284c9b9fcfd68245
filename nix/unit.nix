# From the options of one relay to its systemd unit.
{ lib, pkgs }:
name: relay:
let
  inherit (builtins)
    all
    elem
    match
    toString
    ;
  inherit (lib)
    concatMap
    concatStringsSep
    filterAttrs
    hasPrefix
    mapAttrs
    mapAttrsToList
    nameValuePair
    optionalAttrs
    ;

  option = "services.nats-webhook-relay" + lib.optionalString (name != "") ".instances.${name}";
  unit = "nats-webhook-relay" + lib.optionalString (name != "") "-${name}";
  program = lib.getExe relay.package;

  # systemd replaces % in nearly everything that a unit holds.
  escape = lib.replaceStrings [ "%" ] [ "%%" ];
  text =
    value:
    if value == true then
      "true"
    else if value == false then
      "false"
    else
      toString value;
  list =
    separator: value:
    if value == null || value == [ ] then null else concatStringsSep separator (lib.toList value);

  # PLUGIN_<NAME>_<KEY>, as src/plugin/files.rs folds names.
  fold = lib.stringAsChars (c: if match "[A-Z0-9]" c == null then "_" else c);
  pluginVariables =
    settings:
    lib.concatLists (
      mapAttrsToList (
        plugin:
        mapAttrsToList (key: value: nameValuePair "PLUGIN_${fold (lib.toUpper plugin)}_${key}" value)
      ) settings
    );
  pluginSettings = pluginVariables relay.pluginSettings;
  pluginSecretFiles = pluginVariables relay.pluginSecretFiles;
  pluginKeys = concatMap lib.attrNames (
    lib.attrValues relay.pluginSettings ++ lib.attrValues relay.pluginSecretFiles
  );

  # A plugin's name is that of its file. A file directly in the store is named after its hash, so it gets a link with
  # the name that it had. What comes from the store is also tried while the system is built.
  pluginPath =
    plugin:
    let
      path = "${plugin}";
      base = builtins.unsafeDiscardStringContext (baseNameOf path);
      name = if dirOf path == builtins.storeDir then builtins.substring 33 (-1) base else base;
      limits = filterAttrs (
        name: value: value != null && (name == "PLUGIN_TIMEOUT" || name == "PLUGIN_MEMORY")
      ) relay.settings;
      tried = pkgs.runCommandLocal "nats-webhook-relay-plugin" (mapAttrs (_: text) limits) ''
        mkdir "$out"
        ln -s ${lib.escapeShellArg path} "$out"/${lib.escapeShellArg name}
        ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform) ''
          ${program} plugin check "$out"/${lib.escapeShellArg name}
        ''}
      '';
    in
    if builtins.hasContext path then "${tried}/${name}" else path;

  named = {
    WEBHOOK_DESTINATION = list " " relay.webhookDestination;
    NATS_HOST = list "," relay.natsAddress;
    NATS_USER = relay.natsUser;
    NATS_PASS = relay.natsPassword;
    NATS_SUBJECT_PREFIX = relay.natsSubjectPrefix;
    NATS_RELAYED_SUBJECT_PREFIX = relay.natsRelayedSubjectPrefix;
    NATS_SUBJECT = relay.natsSubject;
    NATS_RELAYED_SUBJECT = relay.natsRelayedSubject;
    NATS_FAILED_SUBJECT_PREFIX = relay.natsFailedSubjectPrefix;
    NATS_STREAM = relay.natsStream;
    NATS_CONSUMER = relay.natsConsumer;
    NATS_DELIVER = relay.natsDeliver;
    PLUGINS = list ":" (map pluginPath relay.plugins);
    RUST_LOG = relay.log;
  }
  // lib.listToAttrs pluginSettings;

  # Each is read by systemd as root and handed over as a file that only the relay sees (LoadCredential).
  namedSecrets = filterAttrs (_: path: path != null) {
    NATS_PASS = relay.natsPasswordFile;
    NATS_CREDS = relay.natsCredentialsFile;
    WEBHOOK_SECRET = relay.webhookSecretFile;
  };
  secrets = relay.secretFiles // namedSecrets // lib.listToAttrs pluginSecretFiles;
  # Variables whose value is a path already. All others have a form NAME_FILE.
  paths = [
    "NATS_CA"
    "NATS_CERT"
    "NATS_CREDS"
    "NATS_KEY"
    "NATS_NKEY"
    "WEBHOOK_CA"
    "WEBHOOK_CERT"
    "WEBHOOK_KEY"
  ];
  secretVariables = lib.mapAttrs' (
    name: _: nameValuePair (if elem name paths then name else "${name}_FILE") "%d/${name}"
  ) secrets;

  values = values: mapAttrs (_: value: if value == null then null else escape (text value)) values;
  environment = filterAttrs (_: value: value != null) (
    values named // secretVariables // values relay.settings
  );
  environmentFiles = lib.toList relay.environmentFile;

  # A variable that may come from a file at run time can not be missed here.
  has =
    names:
    environmentFiles != [ ]
    || lib.any (name: environment.${name} or "" != "" || environment ? "${name}_FILE") names;

  hasPlugins = environment ? PLUGINS;

  require = option': names: meaning: {
    assertion = has names;
    message = "${option}.${option'} is required: ${meaning}";
  };

  # Each format has another way to say which subjects are meant.
  isRoundtripper = variable: environment.${variable} or "plain" == "roundtripper";
  required =
    if relay.command == null then
      [
        (require "webhookDestination" [
          "WEBHOOK_DESTINATION"
        ] ''the URL that messages are POSTed to, such as "https://my-domain.com/api/cache/webhook"'')
        (require "natsSubjectPrefix" [
          "NATS_SUBJECT_PREFIX"
          "NATS_SUBJECT"
        ] ''the prefix of the subjects to listen on, such as "cms.cache", unless natsSubject is set'')
        (require "natsRelayedSubjectPrefix" [
          "NATS_RELAYED_SUBJECT_PREFIX"
          "NATS_RELAYED_SUBJECT"
        ] ''the prefix below which messages are republished, such as "relayed.cache", or natsRelayedSubject with natsSubject'')
      ]
    else if relay.command == "gateway" then
      lib.optional (!isRoundtripper "GATEWAY_FORMAT") (
        require "settings.GATEWAY_SUBJECT_PREFIX" [
          "GATEWAY_SUBJECT_PREFIX"
          "GATEWAY_SUBJECT"
        ] ''the prefix of the subjects that requests are sent to, such as "hooks"''
      )
    else
      [
        (require "settings.SERVE_DESTINATION" [
          "SERVE_DESTINATION"
        ] ''the URL of the backend, such as "http://127.0.0.1:3000"'')
        (
          if isRoundtripper "SERVE_FORMAT" then
            require "settings.SERVE_HOST" [
              "SERVE_HOST"
            ] ''the host that is served, such as "weather.nats"''
          else
            require "settings.SERVE_SUBJECT_PREFIX" [
              "SERVE_SUBJECT_PREFIX"
            ] ''the prefix of the subjects to listen on, such as "api"''
        )
      ];

  subject = name: environment.${name} or "";
  unset = all (name: subject name == "");
  # What is not set is apart from everything.
  apart' =
    overlap: a: b: why: {
      assertion = subject a == "" || subject b == "" || !overlap (subject a) (subject b);
      message = "${option}: ${a} (${subject a}) is equal to, below or above ${b} (${subject b}): ${why}";
    };
  apart = apart' (a: b: a == b || hasPrefix "${a}." b || hasPrefix "${b}." a);
  # An exact subject receives nothing from below it.
  reaches = below: apart' (a: b: hasPrefix "${a}." b || !below && a == b);
  loop = "the relay would receive what it publishes, a loop";
  mixed = "failed messages would arrive where accepted ones are expected";

  # Names that more than one definition claims.
  twice =
    names: lib.attrNames (filterAttrs (_: same: lib.length same > 1) (lib.groupBy (name: name) names));
in
{
  name = unit;

  assertions = [
    {
      assertion = name == "" || match "[A-Za-z0-9][A-Za-z0-9_.-]*" name != null;
      message = "${option}: a name begins with a letter or digit and has only letters, digits, '_', '.' and '-', because it is part of the unit's name";
    }
    (require "natsAddress" [
      "NATS_HOST"
      "NATS_URL"
      "NATS_ADDRESS"
      "NATS_CONTEXT"
    ] ''the URL of the NATS server, such as "nats://my-nats"'')
    (apart "NATS_RELAYED_SUBJECT_PREFIX" "NATS_SUBJECT_PREFIX" loop)
    (apart "NATS_FAILED_SUBJECT_PREFIX" "NATS_SUBJECT_PREFIX" loop)
    (apart "NATS_FAILED_SUBJECT_PREFIX" "NATS_RELAYED_SUBJECT_PREFIX" mixed)
    (reaches false "NATS_RELAYED_SUBJECT" "NATS_SUBJECT" loop)
    (reaches true "NATS_FAILED_SUBJECT_PREFIX" "NATS_SUBJECT" loop)
    (apart "NATS_FAILED_SUBJECT_PREFIX" "NATS_RELAYED_SUBJECT" mixed)
    {
      assertion =
        unset [
          "NATS_SUBJECT"
          "NATS_RELAYED_SUBJECT"
        ]
        || unset [
          "NATS_SUBJECT_PREFIX"
          "NATS_RELAYED_SUBJECT_PREFIX"
        ];
      message = "${option}: set either natsSubject and natsRelayedSubject, or natsSubjectPrefix and natsRelayedSubjectPrefix";
    }
    {
      assertion = !(environment ? NATS_PASS || environment ? NATS_PASS_FILE) || has [ "NATS_USER" ];
      message = "${option}: there is a password but no natsUser";
    }
    {
      assertion = relay.command == null || !hasPlugins;
      message = "${option}.plugins: ${text relay.command} has no plugins";
    }
  ]
  ++ required
  ++ map (name: {
    assertion = !(environment ? "${name}_FILE");
    message = "${option}: both ${name} and ${name}_FILE are set (by natsPassword, natsPasswordFile, settings, secretFiles, pluginSettings or pluginSecretFiles); keep one";
  }) (lib.attrNames environment)
  ++ map (name: {
    assertion = !(relay.secretFiles ? ${name});
    message = "${option}.secretFiles.${name} is set by an option of its own too (natsPasswordFile, natsCredentialsFile or webhookSecretFile); keep one";
  }) (lib.attrNames namedSecrets)
  ++ map (name: {
    assertion = match "[A-Za-z_][A-Za-z0-9_]*" name != null;
    message = "${option}: '${name}' in settings or secretFiles is no name of a variable";
  }) (lib.attrNames relay.settings ++ lib.attrNames relay.secretFiles)
  ++ map (plugin: {
    assertion = match "[A-Za-z0-9_. -]+" plugin != null;
    message = "${option}: the plugin '${plugin}' can not be configured, its name has other characters than letters, digits, '_', '.', '-' and spaces; rename its file";
  }) (lib.attrNames relay.pluginSettings ++ lib.attrNames relay.pluginSecretFiles)
  ++ map (key: {
    assertion = match "[A-Za-z0-9_]+" key != null && !lib.hasSuffix "_FILE" key;
    message = "${option}: '${key}' can not be a key of pluginSettings or pluginSecretFiles: letters, digits and '_' only, and for a file use pluginSecretFiles and leave '_FILE' off";
  }) pluginKeys
  ++
    map
      (name: {
        assertion = false;
        message = "${option}: two of pluginSettings, or two of pluginSecretFiles, mean ${name}: names of plugins differ by more than case and punctuation";
      })
      (
        concatMap (variables: twice (map (variable: variable.name) variables)) [
          pluginSettings
          pluginSecretFiles
        ]
      )
  ++ concatMap (
    plugin:
    let
      path = "${plugin}";
    in
    [
      {
        assertion = !lib.hasInfix ":" path;
        message = "${option}.plugins: ${path} has a colon, which separates paths; rename it";
      }
      {
        assertion =
          !lib.any (folder: hasPrefix folder path) [
            "/home/"
            "/root/"
            "/run/user/"
          ];
        message = "${option}.plugins: the relay does not see ${path}: home folders are hidden from it; put it elsewhere, or take it into the store";
      }
    ]
  ) relay.plugins;

  warnings =
    map
      (
        variable:
        "${option}: ${variable} is in the Nix store, where everybody on this machine can read it. Put it into a file and name that with ${
          if variable == "NATS_PASS" then "natsPasswordFile" else "secretFiles.${variable}"
        }."
      )
      (
        lib.filter (name: environment ? ${name}) [
          "NATS_PASS"
          "NATS_PASSWORD"
          "NATS_SEED"
          "NATS_TOKEN"
          "WEBHOOK_SECRET"
          "GATEWAY_SECRET"
          "GATEWAY_TOKEN"
        ]
      );

  service = {
    description =
      "NATS webhook relay"
      + lib.optionalString (relay.command != null) ", ${relay.command}"
      + lib.optionalString (name != "") " ${name}";
    wantedBy = [ "multi-user.target" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ];
    # Never give up: a server or a login that is not there may come back.
    startLimitIntervalSec = 0;
    # On a switch, stopped and started in one go: what is published in between would be missed.
    stopIfChanged = false;
    inherit environment;

    serviceConfig = {
      # Started means subscribed. If NATS is not there, the start fails after TimeoutStartSec and is tried again.
      Type = "notify";
      NotifyAccess = "main";
      ExecStart = program + lib.optionalString (relay.command != null) " ${relay.command}";
      Restart = "always";
      RestartSec = 2;
      # A mistake in the configuration stays one.
      RestartPreventExitStatus = 64;
      # systemd adds the two up. The grace is the relay's own, and it needs a moment after it.
      TimeoutStopSec = "${environment.SHUTDOWN_GRACE or "25s"} 15s";
      # Connections to NATS and to the destinations: as many as messages at work, and some that idle.
      LimitNOFILE = 65536;
      # The relay reads .env from its working directory, where nothing is to be found.
      WorkingDirectory = "/var/empty";

      DynamicUser = relay.user == null;
      UMask = "0077";
      AmbientCapabilities = "";
      CapabilityBoundingSet = "";
      DevicePolicy = "closed";
      LockPersonality = true;
      # wasmtime compiles plugins, and must make what it has compiled executable.
      MemoryDenyWriteExecute = !hasPlugins;
      NoNewPrivileges = true;
      PrivateDevices = true;
      PrivateTmp = true;
      PrivateUsers = true;
      ProcSubset = "pid";
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHome = true;
      ProtectHostname = true;
      ProtectKernelLogs = true;
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      ProtectProc = "invisible";
      ProtectSystem = "strict";
      RemoveIPC = true;
      # UNIX: to tell systemd that it is ready, and for names that a local service resolves.
      RestrictAddressFamilies = [
        "AF_INET"
        "AF_INET6"
        "AF_UNIX"
      ];
      RestrictNamespaces = true;
      RestrictRealtime = true;
      RestrictSUIDSGID = true;
      SystemCallArchitectures = "native";
      SystemCallErrorNumber = "EPERM";
      SystemCallFilter = [
        "@system-service"
        "~@privileged @resources"
      ];
    }
    // optionalAttrs (relay.user != null) { User = relay.user; }
    // optionalAttrs (relay.group != null) { Group = relay.group; }
    // optionalAttrs (secrets != { }) {
      LoadCredential = mapAttrsToList (name: path: "${name}:${escape (toString path)}") secrets;
    }
    // optionalAttrs (environmentFiles != [ ]) {
      EnvironmentFile = map (path: escape (toString path)) environmentFiles;
    }
    // optionalAttrs hasPlugins {
      # The relay loads plugins again on this signal. Without any, it would end by it.
      ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
      # Compiled plugins: what lies there is executed, so it is the relay's alone.
      CacheDirectory = unit;
      CacheDirectoryMode = "0700";
    };
  };
}
