# Evaluates the module and compares what comes out of it.
#
#     nix-instantiate --eval --strict nix/tests -A failed                       # []
#     nix eval -f nix/tests --write-to DIR files                                # units, docs, counts
#
# `lib` may be nixpkgs' own; in `package`/bin are the relay and kill of the rendered units.
{
  lib ? import ./lib.nix,
  package ? "/nix/store/00000000000000000000000000000000-nats-webhook-relay",
}:
let
  inherit (lib) concatMapStringsSep mkOption types;

  # --- what stands for nixpkgs and NixOS

  derivation = path: {
    type = "derivation";
    name = baseNameOf path;
    outPath = path;
    meta.mainProgram = "nats-webhook-relay";
  };
  inStore = name: "${builtins.storeDir}/00000000000000000000000000000000-${name}";
  # A string that depends on the store, as that of a built package does.
  depends = text: text + builtins.substring 0 0 "${builtins.toFile "dependency" ""}";

  pkgs = {
    coreutils = package;
    callPackage = _: _: derivation package;
    stdenv = {
      buildPlatform.canExecute = other: other == "this";
      hostPlatform = "this";
    };
    # Builds nothing: its path is that of the script.
    runCommandLocal =
      name: environment: script:
      derivation (builtins.toFile name "# ${builtins.toJSON environment}\n${script}");
  };

  # The options of NixOS that the module writes, typed as there.
  nixos = {
    options = {
      assertions = mkOption {
        type = types.listOf (
          types.submodule {
            options = {
              assertion = mkOption { type = types.bool; };
              message = mkOption { type = types.str; };
            };
          }
        );
        default = [ ];
      };
      warnings = mkOption {
        type = types.listOf types.str;
        default = [ ];
      };
      systemd.services = mkOption {
        default = { };
        type = types.attrsOf (
          types.submodule {
            options = {
              description = mkOption { type = types.str; };
              wantedBy = mkOption { type = types.listOf types.str; };
              wants = mkOption { type = types.listOf types.str; };
              after = mkOption { type = types.listOf types.str; };
              startLimitIntervalSec = mkOption { type = types.int; };
              stopIfChanged = mkOption { type = types.bool; };
              environment = mkOption { type = types.attrsOf types.str; };
              serviceConfig = mkOption {
                type =
                  let
                    value = types.oneOf [
                      types.bool
                      types.int
                      types.str
                    ];
                  in
                  types.attrsOf (types.either value (types.listOf value));
              };
            };
          }
        );
      };
    };
  };

  evaluate =
    modules:
    lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [
        nixos
        ../module.nix
      ]
      ++ modules;
    };
  with' = settings: (evaluate [ { services.nats-webhook-relay = settings; } ]).config;
  relay = name: settings: (with' settings).systemd.services.${name};
  only = relay "nats-webhook-relay";
  environment = settings: (only settings).environment;
  service = settings: (only settings).serviceConfig;
  broken =
    settings: map (it: it.message) (lib.filter (it: !it.assertion) (with' settings).assertions);

  # As nixos/lib/systemd-lib.nix writes it.
  render =
    unit:
    let
      line =
        name: value:
        "${name}=${
          if value == true then
            "true"
          else if value == false then
            "false"
          else
            toString value
        }\n";
      lines = name: value: concatMapStringsSep "" (line name) (lib.toList value);
    in
    ''
      [Unit]
      After=${toString unit.after}
      Description=${unit.description}
      StartLimitIntervalSec=${toString unit.startLimitIntervalSec}
      Wants=${toString unit.wants}

      [Service]
    ''
    + lib.concatStringsSep "" (
      lib.mapAttrsToList (
        name: value: "Environment=${builtins.toJSON "${name}=${value}"}\n"
      ) unit.environment
    )
    + lib.concatStringsSep "" (lib.mapAttrsToList lines unit.serviceConfig);

  # --- configurations

  # The end of the document that the program was asked for with.
  seed = {
    enable = true;
    webhookDestination = "https://my-domain.com/api/cache/webhook";
    natsAddress = "nats://my-nats";
    natsUser = "user";
    natsPassword = "password";
    natsSubjectPrefix = "cms.cache";
    natsRelayedSubjectPrefix = "relayed.cache";
  };
  plain = removeAttrs seed [
    "natsUser"
    "natsPassword"
  ];
  plainEnvironment = {
    WEBHOOK_DESTINATION = "https://my-domain.com/api/cache/webhook";
    NATS_HOST = "nats://my-nats";
    NATS_SUBJECT_PREFIX = "cms.cache";
    NATS_RELAYED_SUBJECT_PREFIX = "relayed.cache";
    RUST_LOG = "info";
  };
  exact =
    removeAttrs plain [
      "natsSubjectPrefix"
      "natsRelayedSubjectPrefix"
    ]
    // {
      natsSubject = "feathers-sync";
      natsRelayedSubject = "relayed.feathers";
    };
  plugins = {
    # Path literals, which are copied: a file and a folder.
    file = ./lib.nix;
    folder = ./.;
    # A file of a package, and packages that are a file and a folder.
    inPackage = depends "${inStore "a"}/lib/in-package.wasm";
    isFile = derivation (depends (inStore "is-file.wasm"));
    isFolder = derivation (depends (inStore "is-folder-1.0"));
    # Looked at when the relay starts.
    outside = "/var/lib/plugins/outside.wasm";
  };
  everything = plain // {
    package = derivation package;
    webhookDestination = [
      "https://a/%20?b=%d"
      "http://b"
    ];
    natsAddress = [
      "nats://a"
      "tls://b"
    ];
    natsUser = "us%er";
    natsPasswordFile = "/run/secrets/100% nats";
    natsCredentialsFile = "/run/secrets/creds";
    natsFailedSubjectPrefix = "failed.cache";
    natsStream = "CMS";
    natsConsumer = "shop";
    natsDeliver = "6h";
    webhookSecretFile = "/run/secrets/webhook";
    log = "debug,hyper=warn";
    plugins = lib.attrValues plugins;
    pluginSettings = {
      nextjs-tags = {
        TAGS = "{entity} 5% \"q\" \\ $HOME";
        ON = true;
      };
      "a.b".limit = 3;
    };
    pluginSecretFiles.nextjs-tags.TOKEN = "/run/secrets/token";
    settings = {
      MAX_IN_FLIGHT = 32;
      PLUGIN_WATCH = false;
      SHUTDOWN_GRACE = "1min 30s";
      WEBHOOK_TIMEOUT = "10s";
    };
    secretFiles = {
      WEBHOOK_HEADERS = "/run/secrets/headers";
      NATS_KEY = "/run/secrets/key";
    };
    environmentFile = "/run/secrets/relay%.env";
    user = "relay";
    group = "www";
  };
  gateway = {
    enable = true;
    command = "gateway";
    natsAddress = "nats://my-nats";
    settings.GATEWAY_SUBJECT_PREFIX = "hooks";
  };
  serve = {
    enable = true;
    command = "serve";
    natsAddress = "nats://my-nats";
    settings = {
      SERVE_DESTINATION = "http://127.0.0.1:3000";
      SERVE_SUBJECT_PREFIX = "api";
    };
  };
  several = plain // {
    instances = {
      shop = plain // {
        enable = true;
        natsRelayedSubjectPrefix = "relayed.shop";
        plugins = [ plugins.isFolder ];
      };
      "blog.v2_x" = removeAttrs plain [ "enable" ] // {
        natsRelayedSubjectPrefix = "relayed.blog";
      };
      off = plain // {
        enable = false;
      };
    };
  };

  # --- tests: what is, what should be

  is = actual: expected: { inherit actual expected; };
  # One assertion fails, and says this.
  says =
    text: settings:
    let
      messages = broken settings;
      found = lib.filter (lib.hasInfix text) messages;
    in
    is (if lib.length messages == 1 && found != [ ] then text else messages) text;
  # No configuration comes out of it.
  refused =
    settings:
    let
      config = with' settings;
      result = builtins.tryEval (
        builtins.deepSeq [
          config.systemd.services
          config.assertions
        ] "accepted"
      );
    in
    is (if result.success then result.value else "refused") "refused";
  pick = names: set: lib.filterAttrs (name: _: lib.elem name names) set;
  # The script that makes the folder of the only plugin.
  script = settings: builtins.readFile (dirOf (environment settings).PLUGINS);
  # What PLUGINS has, without the folders that Nix makes up.
  pluginNames = settings: map baseNameOf (split ":" (environment settings).PLUGINS);
  split = separator: text: lib.filter builtins.isString (builtins.split separator text);

  flake = import ./flake.nix { inherit lib is nixos; };

  tests = flake.tests // {
    # Defaults
    "disabled, there is nothing" = is (with' { }).systemd.services { };
    "disabled, nothing is required" = is (broken { }) [ ];
    "the document's configuration is complete" = is (broken seed) [ ];
    "the document's configuration gives these variables" = is (environment seed) (
      plainEnvironment
      // {
        NATS_USER = "user";
        NATS_PASS = "password";
      }
    );
    "a password in the store is warned about, with what to use instead" =
      let
        inherit (with' seed) warnings;
      in
      is
        (
          map (lib.hasInfix "NATS_PASS is in the Nix store") warnings
          ++ map (lib.hasInfix "natsPasswordFile") warnings
        )
        [
          true
          true
        ];
    "nothing else is warned about" = is (with' plain).warnings [ ];
    "variables without options that are set" = is (environment plain) plainEnvironment;
    "the package's program is run, and nothing else" =
      is (service plain).ExecStart "${package}/bin/nats-webhook-relay";
    "another package" =
      is (service (plain // { package = derivation "/other"; })).ExecStart
        "/other/bin/nats-webhook-relay";
    "started means subscribed" = is (pick [ "Type" "NotifyAccess" ] (service plain)) {
      Type = "notify";
      NotifyAccess = "main";
    };
    "it never gives up, except on a wrong configuration" =
      is
        (
          pick [ "Restart" "RestartSec" "RestartPreventExitStatus" ] (service plain)
          // {
            limit = (only plain).startLimitIntervalSec;
          }
        )
        {
          Restart = "always";
          RestartSec = 2;
          RestartPreventExitStatus = 64;
          limit = 0;
        };
    "it begins with the network, at boot" = is (pick [ "wants" "after" "wantedBy" ] (only plain)) {
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      wantedBy = [ "multi-user.target" ];
    };
    "a switch leaves no gap" = is (only plain).stopIfChanged false;
    "without plugins there is no reload, which would end the relay" = is (
      service plain ? ExecReload
    ) false;
    "without plugins nothing is made executable or kept" =
      is (pick [ "MemoryDenyWriteExecute" "CacheDirectory" ] (service plain))
        {
          MemoryDenyWriteExecute = true;
        };
    "systemd waits for longer than the relay does" = is (service plain).TimeoutStopSec "25s 15s";
    "and than the relay was told to" = is (service everything).TimeoutStopSec "1min 30s 15s";
    "no file in the working directory" = is (service plain).WorkingDirectory "/var/empty";
    "a user of its own" = is (pick [ "DynamicUser" "User" "Group" ] (service plain)) {
      DynamicUser = true;
    };
    "a given user" = is (pick [ "DynamicUser" "User" "Group" ] (service everything)) {
      DynamicUser = false;
      User = "relay";
      Group = "www";
    };
    "protected in every way that systemd has" =
      is
        (lib.attrNames (
          lib.filterAttrs (
            name: value:
            value == true
            || value == ""
            || lib.any (prefix: lib.hasPrefix prefix name) [
              "ProtectProc"
              "ProcSubset"
              "ProtectSystem"
              "RestrictAddressFamilies"
              "SystemCall"
              "DevicePolicy"
              "UMask"
            ]
          ) (service plain)
        ))
        [
          "AmbientCapabilities"
          "CapabilityBoundingSet"
          "DevicePolicy"
          "DynamicUser"
          "LockPersonality"
          "MemoryDenyWriteExecute"
          "NoNewPrivileges"
          "PrivateDevices"
          "PrivateTmp"
          "PrivateUsers"
          "ProcSubset"
          "ProtectClock"
          "ProtectControlGroups"
          "ProtectHome"
          "ProtectHostname"
          "ProtectKernelLogs"
          "ProtectKernelModules"
          "ProtectKernelTunables"
          "ProtectProc"
          "ProtectSystem"
          "RemoveIPC"
          "RestrictAddressFamilies"
          "RestrictNamespaces"
          "RestrictRealtime"
          "RestrictSUIDSGID"
          "SystemCallArchitectures"
          "SystemCallErrorNumber"
          "SystemCallFilter"
          "UMask"
        ];
    "enough files" = is (service plain).LimitNOFILE 65536;

    # Subcommands
    "a subcommand needs nothing of the relay" = is (broken gateway ++ broken serve) [ ];
    "a subcommand is run" =
      is
        [
          (service gateway).ExecStart
          (service serve).ExecStart
          (only serve).description
        ]
        [
          "${package}/bin/nats-webhook-relay gateway"
          "${package}/bin/nats-webhook-relay serve"
          "NATS webhook relay, serve"
        ];
    "its variables are set" = is (environment gateway) {
      NATS_HOST = "nats://my-nats";
      GATEWAY_SUBJECT_PREFIX = "hooks";
      RUST_LOG = "info";
    };
    "another subcommand is refused" = refused (gateway // { command = "plugin"; });
    "a gateway needs a subject" = says "settings.GATEWAY_SUBJECT_PREFIX is required" (
      removeAttrs gateway [ "settings" ]
    );
    "one fixed subject is enough" = is (broken (
      gateway // { settings.GATEWAY_SUBJECT = "hooks.stripe"; }
    )) [ ];
    "the hosts of requests are enough, in the format that has them" = is (broken (
      gateway // { settings.GATEWAY_FORMAT = "roundtripper"; }
    )) [ ];
    "a service needs a backend" = says "settings.SERVE_DESTINATION is required" (
      serve // { settings.SERVE_SUBJECT_PREFIX = "api"; }
    );
    "a service needs subjects" = says "settings.SERVE_SUBJECT_PREFIX is required" (
      serve // { settings.SERVE_DESTINATION = "http://b"; }
    );
    "or a host, in the format that has them" = says "settings.SERVE_HOST is required" (
      serve
      // {
        settings = serve.settings // {
          SERVE_FORMAT = "roundtripper";
        };
      }
    );
    "a subcommand has no plugins" = says "gateway has no plugins" (
      gateway // { plugins = [ plugins.outside ]; }
    );
    "its secrets in the store are warned about" =
      is
        (map (lib.hasInfix "secretFiles.GATEWAY_TOKEN")
          (with' (
            gateway
            // {
              settings = gateway.settings // {
                GATEWAY_TOKEN = "t";
              };
            }
          )).warnings
        )
        [ true ];

    # Options and settings
    "every option reaches its variable" = is (removeAttrs (environment everything) [ "PLUGINS" ]) {
      WEBHOOK_DESTINATION = "https://a/%%20?b=%%d http://b";
      NATS_HOST = "nats://a,tls://b";
      NATS_USER = "us%%er";
      NATS_PASS_FILE = "%d/NATS_PASS";
      NATS_CREDS = "%d/NATS_CREDS";
      NATS_KEY = "%d/NATS_KEY";
      NATS_SUBJECT_PREFIX = "cms.cache";
      NATS_RELAYED_SUBJECT_PREFIX = "relayed.cache";
      NATS_FAILED_SUBJECT_PREFIX = "failed.cache";
      NATS_STREAM = "CMS";
      NATS_CONSUMER = "shop";
      NATS_DELIVER = "6h";
      WEBHOOK_SECRET_FILE = "%d/WEBHOOK_SECRET";
      WEBHOOK_HEADERS_FILE = "%d/WEBHOOK_HEADERS";
      RUST_LOG = "debug,hyper=warn";
      PLUGIN_NEXTJS_TAGS_TAGS = "{entity} 5%% \"q\" \\ $HOME";
      PLUGIN_NEXTJS_TAGS_ON = "true";
      PLUGIN_NEXTJS_TAGS_TOKEN_FILE = "%d/PLUGIN_NEXTJS_TAGS_TOKEN";
      PLUGIN_A_B_limit = "3";
      MAX_IN_FLIGHT = "32";
      PLUGIN_WATCH = "false";
      SHUTDOWN_GRACE = "1min 30s";
      WEBHOOK_TIMEOUT = "10s";
    };
    "every option is set in the case above" =
      is
        (lib.attrNames (
          removeAttrs (evaluate [ ]).options.services.nats-webhook-relay (lib.attrNames (everything // exact))
        ))
        [
          "command"
          "instances"
          "natsPassword"
        ];
    "nothing is wrong with all options set" = is (broken everything) [ ];
    "settings win over options" =
      is
        (environment (
          plain
          // {
            settings.RUST_LOG = "trace";
            settings.NATS_HOST = "nats://other";
          }
        ))
        (
          plainEnvironment
          // {
            RUST_LOG = "trace";
            NATS_HOST = "nats://other";
          }
        );
    "null unsets what an option sets" = is (environment (plain // { settings.RUST_LOG = null; })) (
      removeAttrs plainEnvironment [ "RUST_LOG" ]
    );
    "settings of two modules are merged" =
      is
        (pick [ "MAX_IN_FLIGHT" "LOG_FORMAT" ] (
          (evaluate [
            {
              services.nats-webhook-relay = plain // {
                settings.MAX_IN_FLIGHT = 1;
              };
            }
            { services.nats-webhook-relay.settings.LOG_FORMAT = "json"; }
          ]).config.systemd.services.nats-webhook-relay.environment
        ))
        {
          MAX_IN_FLIGHT = "1";
          LOG_FORMAT = "json";
        };
    "the module imported twice, in two ways, counts once" = is ((evaluate [
      ../module.nix
      (import ../module.nix)
      { services.nats-webhook-relay = plain; }
    ]).config.systemd.services.nats-webhook-relay.environment
    ) plainEnvironment;
    "the module of the flake has the flake's package" = is (
      let
        flake = (import ../../flake.nix).outputs {
          self.packages.this.default = derivation "/flake";
          nixpkgs = { inherit lib; };
        };
      in
      (lib.evalModules {
        specialArgs.pkgs = pkgs // {
          stdenv = pkgs.stdenv // {
            hostPlatform.system = "this";
          };
        };
        modules = [
          nixos
          flake.nixosModules.default
          flake.nixosModules.default
          ../module.nix
          { services.nats-webhook-relay = plain; }
        ];
      }).config.systemd.services.nats-webhook-relay.serviceConfig.ExecStart
    ) "/flake/bin/nats-webhook-relay";

    # Secrets
    "secrets are handed over by systemd" = is (service everything).LoadCredential [
      "NATS_CREDS:/run/secrets/creds"
      "NATS_KEY:/run/secrets/key"
      "NATS_PASS:/run/secrets/100%% nats"
      "PLUGIN_NEXTJS_TAGS_TOKEN:/run/secrets/token"
      "WEBHOOK_HEADERS:/run/secrets/headers"
      "WEBHOOK_SECRET:/run/secrets/webhook"
    ];
    "files with variables" = is (service everything).EnvironmentFile [ "/run/secrets/relay%%.env" ];
    "several files with variables" =
      is
        (service (
          plain
          // {
            environmentFile = [
              "/a"
              "/b"
            ];
          }
        )).EnvironmentFile
        [
          "/a"
          "/b"
        ];
    "a secret that is a path literal is not copied" =
      is
        (service (
          plain
          // {
            natsUser = "u";
            natsPasswordFile = ./secret;
          }
        )).LoadCredential
        [ "NATS_PASS:${toString ./secret}" ];
    "no credentials and no files without secrets" = is (pick [ "LoadCredential" "EnvironmentFile" ] (
      service plain
    )) { };
    "a secret in settings is warned about" = is (map (lib.hasInfix "secretFiles.NATS_TOKEN")
      (with' (plain // { settings.NATS_TOKEN = "t"; })).warnings
    ) [ true ];
    "a secret in the store is refused" = refused (plain // { natsPasswordFile = inStore "secret"; });
    "a secret that Nix would copy is refused" = refused (
      plain // { secretFiles.NATS_PASS = "${./lib.nix}"; }
    );
    "a plugin's secret in the store is refused" = refused (
      plain // { pluginSecretFiles.a.B = inStore "secret"; }
    );
    "variables in the store are refused" = refused (
      plain // { environmentFile = [ (inStore "env") ]; }
    );

    # Plugins
    "plugins keep their order and their names" = is (pluginNames everything) [
      "lib.nix"
      "tests"
      "in-package.wasm"
      "is-file.wasm"
      "is-folder-1.0"
      "outside.wasm"
    ];
    "a plugin outside of the store stays where it is" =
      is (environment (plain // { plugins = [ plugins.outside ]; })).PLUGINS
        plugins.outside;
    "plugins need memory that is made executable" =
      is (service everything).MemoryDenyWriteExecute false;
    "so do those of settings" =
      is (service (plain // { settings.PLUGINS = "/p"; })).MemoryDenyWriteExecute
        false;
    "plugins can be reloaded" = is (service everything).ExecReload "${package}/bin/kill -HUP $MAINPID";
    "compiled plugins are kept, where nobody else can write" =
      is (pick [ "CacheDirectory" "CacheDirectoryMode" ] (service everything))
        {
          CacheDirectory = "nats-webhook-relay";
          CacheDirectoryMode = "0700";
        };
    "the unit depends on plugins from the store" =
      is
        (map (plugin: builtins.hasContext (environment (plain // { plugins = [ plugin ]; })).PLUGINS) (
          lib.attrValues plugins
        ))
        [
          true
          true
          true
          true
          true
          false
        ];
    "plugins are tried, within the limits of the relay" =
      let
        text = script (
          plain
          // {
            plugins = [ plugins.isFile ];
            settings.PLUGIN_MEMORY = "1GiB";
            settings.PLUGIN_TIMEOUT = null;
            settings.MAX_IN_FLIGHT = 1;
          }
        );
      in
      is
        (map (part: lib.hasInfix part text) [
          "${package}/bin/nats-webhook-relay plugin check \"$out\"/'is-file.wasm'"
          ''# {"PLUGIN_MEMORY":"1GiB"}''
        ])
        [
          true
          true
        ];
    "but not where the relay can not run" = is (lib.hasInfix "plugin check" (
      builtins.readFile (
        dirOf (
          (lib.evalModules {
            specialArgs.pkgs = pkgs // {
              stdenv = pkgs.stdenv // {
                hostPlatform = "other";
              };
            };
            modules = [
              nixos
              ../module.nix
              {
                services.nats-webhook-relay = plain // {
                  plugins = [ plugins.isFile ];
                };
              }
            ];
          }).config.systemd.services.nats-webhook-relay.environment.PLUGINS
        )
      )
    )) false;
    "a colon separates paths" = says "has a colon" (plain // { plugins = [ "/a:b" ]; });
    "home folders are hidden" = says "does not see /home/me/a.wasm" (
      plain // { plugins = [ "/home/me/a.wasm" ]; }
    );
    "two plugins, one variable" = says "mean PLUGIN_A_B_C" (
      plain
      // {
        pluginSettings.a-b.C = "1";
        pluginSettings.A_B.C = "2";
      }
    );
    "a plugin's name that no variable can have" = says "'ü' can not be configured" (
      plain // { pluginSettings."ü".A = "1"; }
    );
    "a key that no variable can have" = says "'A-B' can not be a key" (
      plain // { pluginSettings.a.A-B = "1"; }
    );
    "a key that means a file" = says "use pluginSecretFiles" (
      plain // { pluginSettings.a.B_FILE = "/x"; }
    );
    "a plugin's setting and secret" = says "both PLUGIN_A_B and PLUGIN_A_B_FILE" (
      plain
      // {
        pluginSettings.a.B = "1";
        pluginSecretFiles.a.B = "/x";
      }
    );

    # Instances
    "one unit for each relay that runs" = is (lib.attrNames (with' several).systemd.services) [
      "nats-webhook-relay"
      "nats-webhook-relay-blog.v2_x"
      "nats-webhook-relay-shop"
    ];
    "nothing is wrong with several" = is (broken several) [ ];
    "each with its own settings" =
      is (relay "nats-webhook-relay-shop" several).environment.NATS_RELAYED_SUBJECT_PREFIX "relayed.shop";
    "its own plugins" =
      is
        [
          ((relay "nats-webhook-relay-shop" several).environment ? PLUGINS)
          ((relay "nats-webhook-relay-blog.v2_x" several).environment ? PLUGINS)
          ((relay "nats-webhook-relay" several).environment ? PLUGINS)
        ]
        [ true false false ];
    "its own cache" =
      is (relay "nats-webhook-relay-shop" several).serviceConfig.CacheDirectory "nats-webhook-relay-shop";
    "its own description" =
      is (relay "nats-webhook-relay-shop" several).description "NATS webhook relay shop";
    "and the package of the first" =
      is
        (relay "nats-webhook-relay-shop" (several // { package = derivation "/other"; }))
        .serviceConfig.ExecStart
        "/other/bin/nats-webhook-relay";
    "instances without the first" =
      is (lib.attrNames (with' (several // { enable = false; })).systemd.services)
        [
          "nats-webhook-relay-blog.v2_x"
          "nats-webhook-relay-shop"
        ];
    "a mistake names its instance" =
      says "services.nats-webhook-relay.instances.a.natsAddress is required"
        {
          instances.a = removeAttrs plain [ "natsAddress" ];
        };
    "a name that no unit can have" = says "a name begins with" { instances."a b" = plain; };

    # Mistakes
    "the destination is required" = says "webhookDestination is required" (
      removeAttrs plain [ "webhookDestination" ]
    );
    "a list of none is none" = says "webhookDestination is required" (
      plain // { webhookDestination = [ ]; }
    );
    "an empty text is none" = says "webhookDestination is required" (
      plain // { webhookDestination = ""; }
    );
    "the server is required" = says "natsAddress is required" (removeAttrs plain [ "natsAddress" ]);
    "the prefix is required" = says "natsSubjectPrefix is required" (
      removeAttrs plain [ "natsSubjectPrefix" ]
    );
    "the relayed prefix is required" = says "natsRelayedSubjectPrefix is required" (
      removeAttrs plain [ "natsRelayedSubjectPrefix" ]
    );
    "what is required may be in settings, by any name" = is (broken (
      removeAttrs plain [ "natsAddress" ] // { settings.NATS_URL = "nats://a"; }
    )) [ ];
    "or in a context" = is (broken (
      removeAttrs plain [ "natsAddress" ] // { settings.NATS_CONTEXT = "/etc/nats/prod.json"; }
    )) [ ];
    "or in a secret file" = is (broken (
      removeAttrs plain [ "webhookDestination" ] // { secretFiles.WEBHOOK_DESTINATION = "/x"; }
    )) [ ];
    "or in a file with variables" = is (broken {
      enable = true;
      environmentFile = "/x";
    }) [ ];
    "two passwords" = says "both NATS_PASS and NATS_PASS_FILE are set" (
      seed // { natsPasswordFile = "/x"; }
    );
    "two password files" = says "secretFiles.NATS_PASS is set by an option" (
      plain
      // {
        natsUser = "u";
        natsPasswordFile = "/x";
        secretFiles.NATS_PASS = "/y";
      }
    );
    "a password without a user" = says "no natsUser" (removeAttrs seed [ "natsUser" ]);
    "a loop" = says "a loop" (plain // { natsRelayedSubjectPrefix = "cms.cache.relayed"; });
    "a loop of failed messages" = says "a loop" (plain // { natsFailedSubjectPrefix = "cms"; });
    "failed among relayed" = says "where accepted ones are expected" (
      plain // { natsFailedSubjectPrefix = "relayed.cache"; }
    );
    "prefixes that only begin alike" = is (broken (
      plain // { natsRelayedSubjectPrefix = "cms.cached"; }
    )) [ ];
    "exact subjects instead of prefixes" = is (environment exact) (
      removeAttrs plainEnvironment [
        "NATS_SUBJECT_PREFIX"
        "NATS_RELAYED_SUBJECT_PREFIX"
      ]
      // {
        NATS_SUBJECT = "feathers-sync";
        NATS_RELAYED_SUBJECT = "relayed.feathers";
      }
    );
    "an exact subject is relayed to one" = says "set either" (
      removeAttrs exact [ "natsRelayedSubject" ] // { natsRelayedSubjectPrefix = "relayed"; }
    );
    "an exact subject alone" = says "or natsRelayedSubject" (
      removeAttrs exact [ "natsRelayedSubject" ]
    );
    "exact subjects and prefixes" = says "set either" (exact // { natsSubjectPrefix = "cms.cache"; });
    "a loop of an exact subject" = says "a loop" (exact // { natsRelayedSubject = "feathers-sync"; });
    "a loop below an exact subject" = says "a loop" (exact // { natsSubject = "relayed.feathers.a"; });
    "a loop of failed messages to an exact subject" = says "a loop" (
      exact
      // {
        natsSubject = "failed.feathers-sync";
        natsFailedSubjectPrefix = "failed";
      }
    );
    "failed below an exact relayed subject" = says "where accepted ones are expected" (
      exact // { natsFailedSubjectPrefix = "relayed.feathers.failed"; }
    );
    "what is below an exact subject is not received" = is (broken (
      exact // { natsRelayedSubject = "feathers-sync.relayed"; }
    )) [ ];
    "nor are failed messages below it" = is (broken (
      exact // { natsFailedSubjectPrefix = "feathers-sync"; }
    )) [ ];
    "a setting that is no variable" = says "'A B' in settings" (plain // { settings."A B" = 1; });
    "an unknown option" = refused (plain // { webhookDestinations = "http://a"; });
    "an unknown option of an instance" = refused {
      instances.a = plain // {
        natsHost = "a";
      };
    };
    "enable is yes or no" = refused (plain // { enable = "yes"; });
    "a destination is text" = refused (plain // { webhookDestination = 1; });
    "destinations are texts" = refused (plain // { webhookDestination = [ 1 ]; });
    "an address is text" = refused (plain // { natsAddress = true; });
    "a log level is text" = refused (plain // { log = 3; });
    "a log level is one" = refused (plain // { log = [ "info" ]; });
    "plugins are a list" = refused (plain // { plugins = "/a.wasm"; });
    "plugins are paths" = refused (plain // { plugins = [ "a.wasm" ]; });
    "settings are not nested" = refused (plain // { settings.A.B = 1; });
    "settings are no lists" = refused (plain // { settings.A = [ "a" ]; });
    "plugins' settings have two levels" = refused (plain // { pluginSettings.A = 1; });
    "a secret's path is absolute" = refused (plain // { natsPasswordFile = "secret"; });
    "a file's path is absolute" = refused (plain // { environmentFile = "-/x"; });
    "a package is one" = refused (plain // { package = "relay"; });

    # What is shown to people
    "every option is described and has an example or a default" = is (lib.filter (
      option: option.description or "" == "" || !(option ? default)
    ) (lib.attrValues (evaluate [ ]).options.services.nats-webhook-relay)) [ ];
  };

  passes = test: test.actual == test.expected;
  failed = lib.filter (name: !passes tests.${name}) (lib.attrNames tests);
  report = concatMapStringsSep "" (name: ''
    FAILED: ${name}
      is        ${builtins.unsafeDiscardStringContext (builtins.toJSON tests.${name}.actual)}
      should be ${builtins.unsafeDiscardStringContext (builtins.toJSON tests.${name}.expected)}
  '') failed;
in
{
  inherit tests failed;

  files = {
    inherit report;
    count = toString (lib.length (lib.attrNames tests));
    "options.md" = import ./docs.nix {
      inherit lib;
      inherit (evaluate [ ]) options;
    };
    # Without those of plugins.
    variables = lib.concatMapStringsSep "" (name: "${name}\n") (
      lib.filter (name: !lib.hasPrefix "PLUGIN_NEXTJS" name && !lib.hasPrefix "PLUGIN_A" name) (
        lib.attrNames (environment everything)
      )
    );
    "vm-test.py" = flake.testScript;
    "plugin.sh" = script (plain // { plugins = [ plugins.file ]; });
    units = lib.mapAttrs (_: unit: builtins.unsafeDiscardStringContext (render unit)) {
      "document.service" = only seed;
      "everything.service" = only everything;
      "instance.service" = relay "nats-webhook-relay-shop" several;
    };
  };
}
