# A machine with nats-server, a webhook endpoint, and the relay with a plugin.
{ module, plugin }:
{
  name = "nats-webhook-relay";

  nodes.machine =
    { lib, pkgs, ... }:
    {
      imports = [ module ];

      environment.systemPackages = [ pkgs.natscli ];

      # The configuration, with the password in it, is written by the test.
      systemd.services.nats = {
        serviceConfig.ExecStart = "${lib.getExe pkgs.nats-server} --config /run/nats.conf";
      };

      # Keeps the bodies of the calls, one in each line.
      systemd.services.endpoint = {
        wantedBy = [ "multi-user.target" ];
        serviceConfig.ExecStart = "${lib.getExe pkgs.python3} ${pkgs.writeText "endpoint.py" ''
          from http.server import BaseHTTPRequestHandler, HTTPServer


          class Endpoint(BaseHTTPRequestHandler):
              def do_POST(self):
                  body = self.rfile.read(int(self.headers["content-length"]))
                  with open("/run/calls", "ab") as calls:
                      calls.write(body + b"\n")
                  self.send_response(204)
                  self.end_headers()


          HTTPServer(("127.0.0.1", 3000), Endpoint).serve_forever()
        ''}";
      };

      services.nats-webhook-relay = {
        enable = true;
        webhookDestination = "http://127.0.0.1:3000/api/cache/webhook";
        natsAddress = "nats://127.0.0.1:4222";
        natsUser = "relay";
        natsPasswordFile = "/run/secrets/nats-password";
        natsSubjectPrefix = "cms.cache";
        natsRelayedSubjectPrefix = "relayed.cache";
        plugins = [ plugin ];
        pluginSettings.nextjs-tags.TAGS = "{entity}:{id}";
        settings.HTTP_LISTEN = "127.0.0.1:9090";
      };
      # Started by the test, when there is a password.
      systemd.services.nats-webhook-relay.wantedBy = lib.mkForce [ ];
    };

  testScript = ''
    NATS = "nats --server nats://relay:$(cat /run/secrets/nats-password)@127.0.0.1:4222"
    UNIT = "nats-webhook-relay.service"

    machine.wait_for_unit("multi-user.target")
    machine.succeed(
        "install -d -m 700 /run/secrets",
        "head -c 18 /dev/urandom | base64 | tr +/ ab > /run/secrets/nats-password",
        "printf 'authorization { user: relay, password: \"%s\" }' $(cat /run/secrets/nats-password) > /run/nats.conf",
        "systemctl start nats.service",
    )
    machine.wait_for_open_port(4222)
    machine.wait_for_open_port(3000)

    with subtest("started means subscribed"):
        machine.succeed(f"systemctl start {UNIT}", "curl --fail http://127.0.0.1:9090/readyz")

    with subtest("a message goes through, and is shaped by the plugin"):
        machine.succeed(
            f"{NATS} sub --count 1 --raw 'relayed.cache.>' > /run/relayed & sleep 2;"
            f" {NATS} pub cms.cache.article.42 '{{\"entity\":\"article\",\"id\":42}}'; wait"
        )
        relayed = machine.succeed("cat /run/relayed").strip()
        assert relayed == '{"entity":"article","id":42}', relayed
        call = machine.succeed("cat /run/calls").strip()
        assert call == '{"tags":["article:42"]}', call

    with subtest("the password is neither in the unit nor in the environment"):
        machine.succeed(f"systemctl show --property MainPID --value {UNIT} > /run/pid")
        machine.fail(f"systemctl cat {UNIT} | grep --fixed-strings --file /run/secrets/nats-password")
        machine.fail("grep --fixed-strings --file /run/secrets/nats-password /proc/$(cat /run/pid)/environ")
        machine.fail("grep --dereference-recursive --fixed-strings --file /run/secrets/nats-password /run/current-system/etc/systemd/")

    with subtest("plugins are loaded again"):
        machine.succeed(f"systemctl reload {UNIT}", f"systemctl is-active {UNIT}")
        assert machine.succeed(f"systemctl show --property MainPID --value {UNIT}") == machine.succeed("cat /run/pid")

    with subtest("what is compiled is kept for the relay alone"):
        machine.succeed("ls /var/cache/private/nats-webhook-relay/*")
        mode = machine.succeed("stat --format %a /var/cache/private/nats-webhook-relay").strip()
        assert mode == "700", mode

    with subtest("it stops by itself"):
        machine.succeed(f"systemctl stop {UNIT}")
        result = machine.succeed(f"systemctl show --property Result --value {UNIT}").strip()
        assert result == "success", result

    print(machine.succeed(f"systemd-analyze security --no-pager {UNIT} | tail -n 1"))
  '';
}
