//! Plugins made by hand: real components from a few lines of WebAssembly text.
//!
//! A [`Component`] is a core module with the functions of the canonical ABI, a small library of
//! functions to call from a hook's body (`prelude` below), and the types of `wit/`. The body
//! of a hook is an expression that leaves its result, such as [`text`] or [`reject`], and
//! `(text "...")` in it stands for the address and the length of a text.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub const BODY: &str = "webhook-payload";
pub const HEADERS: &str = "webhook-headers";
pub const PAYLOAD: &str = "relayed-payload";
pub const SUBJECT: &str = "relayed-subject";
/// All hooks in the order in which they are called.
pub const HOOKS: [&str; 4] = [BODY, HEADERS, PAYLOAD, SUBJECT];

/// A plugin to be built.
#[derive(Clone)]
pub struct Component {
    hooks: Vec<(&'static str, String)>,
    /// Of the core module.
    imports: String,
    fields: String,
    /// Of the world, and packages beside it.
    world: String,
    packages: String,
    /// Changes of `wit/plugin.wit`.
    wit: Vec<(String, String)>,
}

impl Component {
    /// One without any hook.
    pub fn new() -> Self {
        let none = String::new;
        Self {
            hooks: Vec::new(),
            imports: none(),
            fields: none(),
            world: none(),
            packages: none(),
            wit: Vec::new(),
        }
    }

    /// One with a single hook.
    pub fn with(hook: &'static str, body: &str) -> Self {
        Self::new().hook(hook, body)
    }

    /// One with all hooks, in which each has the body that `body` makes for it.
    pub fn with_all(body: impl Fn(&'static str) -> String) -> Self {
        HOOKS.into_iter().fold(Self::new(), |component, hook| component.hook(hook, &body(hook)))
    }

    /// Adds a hook.
    pub fn hook(mut self, hook: &'static str, body: &str) -> Self {
        self.hooks.push((hook, body.to_owned()));
        self
    }

    /// Adds fields to the core module.
    pub fn field(mut self, field: &str) -> Self {
        self.fields += field;
        self
    }

    /// Imports or exports an interface that is not known here: in the world, its package, and its
    /// function in the core module.
    pub fn beside(mut self, world: &str, package: &str, field: &str) -> Self {
        self.world += world;
        self.packages += package;
        self.imports += field;
        self
    }

    /// Is built against another `wit/plugin.wit`, in which `from` is `to`.
    pub fn against(mut self, from: &str, to: &str) -> Self {
        self.wit.push((from.to_owned(), to.to_owned()));
        self
    }

    /// The component in binary form.
    pub fn binary(&self) -> Vec<u8> {
        let mut plugin = include_str!("../../wit/plugin.wit").to_owned();
        for (from, to) in &self.wit {
            assert!(plugin.contains(from.as_str()), "{from} is not in plugin.wit");
            plugin = plugin.replace(from, to);
        }
        let package = plugin
            .lines()
            .find_map(|line| line.strip_prefix("package "))
            .unwrap()
            .trim_end_matches(';');
        let (package, version) = package.split_once('@').unwrap();
        let interface = |hook: &str| format!("{package}/{hook}@{version}");

        let module = self.module(&interface);
        let used = CAPABILITIES.iter().filter(|capability| module.contains(capability.imports));
        let imports: BTreeSet<_> = used
            .flat_map(|capability| capability.world.split_inclusive(';'))
            .map(str::trim)
            .collect();
        let imports = String::from_iter(imports);
        let exports: String =
            self.hooks.iter().map(|(hook, _)| format!("export {};\n", interface(hook))).collect();
        let world = format!(
            "package test:plugin;\nworld plugin {{ {imports} {} {exports} }}\n{WASI}\n{}",
            self.world, self.packages
        );
        let mut resolve = Resolve::default();
        resolve
            .push_str("store.wit", include_str!("../../wit/deps/wasi-config/store.wit"))
            .unwrap();
        resolve.push_str("plugin.wit", &plugin).unwrap();
        let test = resolve
            .push_str("test.wit", &world)
            .unwrap_or_else(|error| panic!("{error:?}\n{world}"));
        let world = resolve.select_world(&[test], Some("plugin")).unwrap();

        let mut binary =
            wat::parse_str(&module).unwrap_or_else(|error| panic!("{error}\n{module}"));
        embed_component_metadata(&mut binary, &resolve, world, StringEncoding::UTF8).unwrap();
        let encoded = ComponentEncoder::default()
            .validate(true)
            .module(&binary)
            .and_then(|mut encoder| encoder.encode());
        encoded.unwrap_or_else(|error| panic!("{error:?}\n{module}"))
    }

    /// The core module as text.
    fn module(&self, interface: &impl Fn(&str) -> String) -> String {
        let mut functions = self.fields.clone();
        for (hook, body) in &self.hooks {
            let function = match *hook {
                BODY | PAYLOAD => "transform",
                HEADERS => "set",
                _ => "remap",
            };
            // A changed plugin.wit may call the function differently.
            let renamed = self.wit.iter().find_map(|(from, to)| {
                Some((from.strip_suffix(": func")?, to.strip_suffix(": func")?))
            });
            let function =
                renamed.filter(|(from, _)| *from == function).map_or(function, |(_, to)| to);
            let name = format!("{}#{function}", interface(hook));
            write!(
                functions,
                r#"
                (func (export "{name}")
                    (param $id i32) (param $id_len i32) (param $subject i32) (param $subject_len i32)
                    (param $tail i32) (param $tail_len i32) (param $headers i32) (param $headers_len i32)
                    (param $payload i32) (param $payload_len i32) (result i32)
                    (local $i i32) (local $at i32) (local $len i32)
                    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
                    {body})
                (func (export "cabi_post_{name}") (param i32) (global.set $heap (global.get $heap_start)))
                "#
            )
            .unwrap();
        }
        // What is used may use more.
        let (mut imports, mut library) = (self.imports.clone(), String::new());
        let mut left: Vec<_> = CAPABILITIES.iter().collect();
        loop {
            let called = |name: &str| {
                functions.contains(&format!("(call ${name}"))
                    || library.contains(&format!("(call ${name}"))
            };
            let (used, unused): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|capability| called(capability.name));
            left = unused;
            if used.is_empty() {
                break;
            }
            for capability in used {
                imports += capability.imports;
                library += capability.functions;
            }
        }
        let (fields, data, end) = with_texts(&format!("{library} {functions} {PRELUDE}"));
        let heap = (end + 65_536).next_multiple_of(16);
        format!(
            r#"(module
                {imports}
                (memory (export "memory") {pages})
                {fields}
                {data}
                (global $out_start i32 (i32.const {end}))
                (global $heap_start i32 (i32.const {heap}))
                (global $heap (mut i32) (i32.const {heap}))
            )"#,
            pages = heap / 65_536 + 1,
        )
    }
}

/// Puts the texts of `(text "...")` into the memory: the module, its data, and where that ends.
fn with_texts(module: &str) -> (String, String, usize) {
    const START: usize = 1024;
    let (mut fields, mut data, mut at) = (String::new(), String::new(), START);
    let mut parts = module.split("(text \"");
    fields += parts.next().unwrap();
    for part in parts {
        let (literal, rest) = part.split_once("\")").unwrap();
        // Made by `quoted`: the only escapes are of two digits.
        let len = literal.len() - 2 * literal.matches('\\').count();
        write!(data, "(data (i32.const {at}) \"{literal}\")").unwrap();
        write!(fields, "(i32.const {at}) (i32.const {len}){rest}").unwrap();
        at += len;
    }
    (fields, data, at.next_multiple_of(16))
}

/// Any bytes as `(text "...")`: an address and a length.
pub fn quoted(bytes: impl AsRef<[u8]>) -> String {
    let escaped: String = bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b' ' | b'-' | b'.' | b':' => {
                text.push(char::from(*byte))
            }
            _ => write!(text, "\\{byte:02x}").unwrap(),
        }
        text
    });
    format!("(text \"{escaped}\")")
}

// ---- What a hook returns -----------------------------------------------------------------

/// These bytes, as body, payload or subject.
pub fn text(bytes: impl AsRef<[u8]>) -> String {
    format!("(call $ok {})", quoted(bytes))
}

/// What the message has already.
pub fn unchanged(hook: &str) -> String {
    match hook {
        HEADERS => "(call $ok (i32.const 0) (i32.const 0))",
        SUBJECT => "(call $ok (local.get $tail) (local.get $tail_len))",
        _ => "(call $ok (local.get $payload) (local.get $payload_len))",
    }
    .to_owned()
}

/// These headers.
pub fn headers<V: AsRef<[u8]>>(headers: &[(&str, V)]) -> String {
    let mut body = format!("(call $begin_headers (i32.const {}))", headers.len());
    for (name, value) in headers {
        write!(body, "(call $header {} {})", quoted(name), quoted(value)).unwrap();
    }
    body + "(call $ok (call $all_headers))"
}

pub fn reject(reason: &str) -> String {
    format!("(call $err (i32.const 0) {})", quoted(reason))
}

pub fn failed(reason: &str) -> String {
    format!("(call $err (i32.const 1) {})", quoted(reason))
}

/// `len` zero bytes, from memory that is asked for.
pub fn zeros(len: usize) -> String {
    format!("(call $ok (call $alloc (i32.const {len})) (i32.const {len}))")
}

/// The text that was put together with `$put` and `$put_number`.
pub const OUT: &str = "(call $ok (call $out))";

// ---- What a hook does --------------------------------------------------------------------

pub const TRAP: &str = "unreachable";
pub const LOOP: &str = "(loop $again (br $again)) unreachable";

/// Writes a line to stdout.
pub fn say(line: impl AsRef<[u8]>) -> String {
    let line = [line.as_ref(), b"\n"].concat();
    format!("(call $print {})", quoted(line))
}

/// Writes the text that was put together to stdout, as a line.
pub const SAY_OUT: &str =
    "(call $put_byte (i32.const 10)) (call $print (call $out)) (global.set $out_len (i32.const 0))";

/// Appends to the text that [`OUT`] returns.
pub fn put(text: impl AsRef<[u8]>) -> String {
    format!("(call $put {})", quoted(text))
}

/// Appends the number of calls that this instance has had.
pub const PUT_CALLS: &str = "(call $put_number (global.get $calls))";
pub const PUT_PAYLOAD: &str = "(call $put (local.get $payload) (local.get $payload_len))";
pub const PUT_TAIL: &str = "(call $put (local.get $tail) (local.get $tail_len))";

/// Appends all that the hook was given: id|subject|tail|name=value&...|payload.
pub const PUT_INPUT: &str = "(call $describe
    (local.get $id) (local.get $id_len) (local.get $subject) (local.get $subject_len)
    (local.get $tail) (local.get $tail_len) (local.get $headers) (local.get $headers_len)
    (local.get $payload) (local.get $payload_len))";

/// Does `then`, which leaves a result or none, where the payload is `payload`.
pub fn on(payload: &str, then: &str) -> String {
    format!(
        "(if (call $same (local.get $payload) (local.get $payload_len) {}) (then (return (block (result i32) {then}))))",
        quoted(payload)
    )
}

/// Does `statements` as often.
pub fn times(count: usize, statements: &str) -> String {
    format!(
        "(local.set $i (i32.const {count}))
        (loop $next {statements} (br_if $next (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))"
    )
}

/// Part of the library that needs an import.
struct Capability {
    /// The function of `functions` to call.
    name: &'static str,
    /// What the world imports.
    world: &'static str,
    /// What the core module imports.
    imports: &'static str,
    functions: &'static str,
}

const CAPABILITIES: &[Capability] = &[
    // (ptr, len)
    Capability {
        name: "print",
        world: "import wasi:cli/stdout@0.2.0;",
        imports: r#"(import "wasi:cli/stdout@0.2.0" "get-stdout" (func $get_stdout (result i32)))"#,
        functions: r"
            (global $stdout (mut i32) (i32.const -1))
            (func $print (param $at i32) (param $len i32)
                (if (i32.eq (global.get $stdout) (i32.const -1)) (then (global.set $stdout (call $get_stdout))))
                (call $write (global.get $stdout) (local.get $at) (local.get $len)))",
    },
    Capability {
        name: "complain",
        world: "import wasi:cli/stderr@0.2.0;",
        imports: r#"(import "wasi:cli/stderr@0.2.0" "get-stderr" (func $get_stderr (result i32)))"#,
        functions: r"
            (global $stderr (mut i32) (i32.const -1))
            (func $complain (param $at i32) (param $len i32)
                (if (i32.eq (global.get $stderr) (i32.const -1)) (then (global.set $stderr (call $get_stderr))))
                (call $write (global.get $stderr) (local.get $at) (local.get $len)))",
    },
    // (stream, ptr, len)
    Capability {
        name: "write",
        world: "import wasi:io/streams@0.2.0;",
        imports: r#"(import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
            (func $blocking_write (param i32 i32 i32 i32)))"#,
        functions: r"
            (func $write (param $stream i32) (param $at i32) (param $len i32)
                (local $some i32)
                (loop $more
                    (local.set $some (select (i32.const 4096) (local.get $len) (i32.gt_u (local.get $len) (i32.const 4096))))
                    (call $blocking_write (local.get $stream) (local.get $at) (local.get $some) (i32.const 16))
                    (if (i32.load8_u (i32.const 16)) (then unreachable))
                    (local.set $at (i32.add (local.get $at) (local.get $some)))
                    (br_if $more (local.tee $len (i32.sub (local.get $len) (local.get $some))))))",
    },
    Capability {
        name: "exit",
        world: "import wasi:cli/exit@0.2.0;",
        imports: r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit_with (param i32)))"#,
        functions: "(func $exit (param i32) (call $exit_with (local.get 0)))",
    },
    // Appends the value of a key of the plugin's configuration.
    Capability {
        name: "put_config",
        world: "import wasi:config/store@0.2.0-rc.1;",
        imports: r#"(import "wasi:config/store@0.2.0-rc.1" "get" (func $config_get (param i32 i32 i32)))"#,
        functions: r"
            (func $put_config (param $key i32) (param $len i32)
                (call $config_get (local.get $key) (local.get $len) (i32.const 16))
                (if (i32.load8_u (i32.const 16)) (then unreachable))
                (if (i32.load8_u (i32.const 20))
                    (then (call $put (i32.load (i32.const 24)) (i32.load (i32.const 28))))
                    (else (call $put_byte (i32.const 45)))))",
    },
    // Append all pairs: name=value&name=value&
    Capability {
        name: "put_all_config",
        world: "import wasi:config/store@0.2.0-rc.1;",
        imports: r#"(import "wasi:config/store@0.2.0-rc.1" "get-all" (func $config_get_all (param i32)))"#,
        functions: r"
            (func $put_all_config
                (call $config_get_all (i32.const 16))
                (if (i32.load8_u (i32.const 16)) (then unreachable))
                (call $put_pairs (i32.load (i32.const 20)) (i32.load (i32.const 24))))",
    },
    Capability {
        name: "put_environment",
        world: "import wasi:cli/environment@0.2.0;",
        imports: r#"(import "wasi:cli/environment@0.2.0" "get-environment" (func $get_environment (param i32)))"#,
        functions: r"
            (func $put_environment
                (call $get_environment (i32.const 16))
                (call $put_pairs (i32.load (i32.const 16)) (i32.load (i32.const 20))))",
    },
    // (nanoseconds: i64)
    Capability {
        name: "sleep",
        world: "import wasi:clocks/monotonic-clock@0.2.0; import wasi:io/poll@0.2.0;",
        imports: r#"
            (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
            (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
            (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop_pollable (param i32)))"#,
        functions: r"
            (func $sleep (param i64) (local $pollable i32)
                (local.set $pollable (call $subscribe (local.get 0)))
                (call $block (local.get $pollable))
                (call $drop_pollable (local.get $pollable)))",
    },
    Capability {
        name: "put_random",
        world: "import wasi:random/random@0.2.0;",
        imports: r#"(import "wasi:random/random@0.2.0" "get-random-u64" (func $random (result i64)))"#,
        functions: "(func $put_random (call $put_number (i32.wrap_i64 (call $random))))",
    },
    Capability {
        name: "put_seconds",
        world: "import wasi:clocks/wall-clock@0.2.0;",
        imports: r#"(import "wasi:clocks/wall-clock@0.2.0" "now" (func $now (param i32)))"#,
        functions: "(func $put_seconds (call $now (i32.const 16)) (call $put_number (i32.load (i32.const 16))))",
    },
    // Appends the number of folders that the plugin can reach.
    Capability {
        name: "put_folders",
        world: "import wasi:filesystem/preopens@0.2.0;",
        imports: r#"(import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $get_directories (param i32)))"#,
        functions: "(func $put_folders (call $get_directories (i32.const 16)) (call $put_number (i32.load (i32.const 20))))",
    },
    // Appends what comes of making a TCP socket and a UDP socket: ok or an error's number.
    Capability {
        name: "put_sockets",
        world: "import wasi:sockets/tcp-create-socket@0.2.0; import wasi:sockets/udp-create-socket@0.2.0;",
        imports: r#"
            (import "wasi:sockets/tcp-create-socket@0.2.0" "create-tcp-socket" (func $create_tcp (param i32 i32)))
            (import "wasi:sockets/udp-create-socket@0.2.0" "create-udp-socket" (func $create_udp (param i32 i32)))"#,
        functions: r"
            (func $put_sockets
                (call $create_tcp (i32.const 0) (i32.const 16))
                (call $put_created)
                (call $create_udp (i32.const 0) (i32.const 16))
                (call $put_created))
            (func $put_created
                (if (i32.load8_u (i32.const 16))
                    (then (call $put_number (i32.load8_u (i32.const 20))))
                    (else (call $put_byte (i32.const 45))))
                (call $put_byte (i32.const 32)))",
    },
];

/// The parts of WASI 0.2 that are used here, word for word.
const WASI: &str = "
package wasi:io@0.2.0 {
    interface error { resource error; }
    interface poll { resource pollable { block: func(); } }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource output-stream { blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>; }
    }
}
package wasi:cli@0.2.0 {
    interface stdout { use wasi:io/streams@0.2.0.{output-stream}; get-stdout: func() -> output-stream; }
    interface stderr { use wasi:io/streams@0.2.0.{output-stream}; get-stderr: func() -> output-stream; }
    interface exit { exit: func(status: result); }
    interface environment { get-environment: func() -> list<tuple<string, string>>; }
}
package wasi:clocks@0.2.0 {
    interface monotonic-clock {
        use wasi:io/poll@0.2.0.{pollable};
        type duration = u64;
        subscribe-duration: func(when: duration) -> pollable;
    }
    interface wall-clock {
        record datetime { seconds: u64, nanoseconds: u32 }
        now: func() -> datetime;
    }
}
package wasi:random@0.2.0 {
    interface random { get-random-u64: func() -> u64; }
}
package wasi:filesystem@0.2.0 {
    interface types { resource descriptor; }
    interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }
}
package wasi:sockets@0.2.0 {
    interface network {
        enum error-code {
            unknown, access-denied, not-supported, invalid-argument, out-of-memory, timeout, concurrency-conflict, not-in-progress,
            would-block, invalid-state, new-socket-limit, address-not-bindable, address-in-use, remote-unreachable,
            connection-refused, connection-reset, connection-aborted, datagram-too-large, name-unresolvable,
            temporary-resolver-failure, permanent-resolver-failure,
        }
        enum ip-address-family { ipv4, ipv6 }
    }
    interface tcp { resource tcp-socket; }
    interface tcp-create-socket {
        use network.{error-code, ip-address-family};
        use tcp.{tcp-socket};
        create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
    }
    interface udp { resource udp-socket; }
    interface udp-create-socket {
        use network.{error-code, ip-address-family};
        use udp.{udp-socket};
        create-udp-socket: func(address-family: ip-address-family) -> result<udp-socket, error-code>;
    }
}";

/// The library. The memory is: what host functions return (from 16), texts (from 1024), the text that is put
/// together (64 KiB), and a heap that is emptied after each call.
const PRELUDE: &str = r#"
    (global $calls (mut i32) (i32.const 0))
    (global $out_len (mut i32) (i32.const 0))
    (global $list (mut i32) (i32.const 0))
    (global $list_len (mut i32) (i32.const 0))
    (global $result (mut i32) (i32.const 0))

    (func $alloc (param $size i32) (result i32)
        (local $at i32) (local $missing i32)
        (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 15)) (i32.const -16)))
        (global.set $heap (i32.add (local.get $at) (local.get $size)))
        (local.set $missing (i32.sub (i32.shr_u (i32.add (global.get $heap) (i32.const 65535)) (i32.const 16)) (memory.size)))
        (if (i32.gt_s (local.get $missing) (i32.const 0))
            (then (if (i32.eq (memory.grow (local.get $missing)) (i32.const -1)) (then unreachable))))
        (local.get $at))

    (func $realloc (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
        (local $at i32)
        (local.set $at (call $alloc (local.get $size)))
        (memory.copy (local.get $at) (local.get $old) (local.get $old_size))
        (local.get $at))

    ;; result<list or string, _>
    (func $ok (param $at i32) (param $len i32) (result i32)
        (local $result i32)
        (local.set $result (call $alloc (i32.const 16)))
        (i32.store (local.get $result) (i32.const 0))
        (i32.store offset=4 (local.get $result) (local.get $at))
        (i32.store offset=8 (local.get $result) (local.get $len))
        (global.set $out_len (i32.const 0))
        (local.get $result))

    (func $err (param $kind i32) (param $at i32) (param $len i32) (result i32)
        (local $result i32)
        (local.set $result (call $alloc (i32.const 16)))
        (i32.store (local.get $result) (i32.const 1))
        (i32.store offset=4 (local.get $result) (local.get $kind))
        (i32.store offset=8 (local.get $result) (local.get $at))
        (i32.store offset=12 (local.get $result) (local.get $len))
        (global.set $out_len (i32.const 0))
        (local.get $result))

    (func $begin_headers (param $count i32)
        (global.set $list (call $alloc (i32.mul (local.get $count) (i32.const 16))))
        (global.set $list_len (i32.const 0)))

    (func $header (param $name i32) (param $name_len i32) (param $value i32) (param $value_len i32)
        (local $at i32)
        (local.set $at (i32.add (global.get $list) (i32.mul (global.get $list_len) (i32.const 16))))
        (i32.store (local.get $at) (local.get $name))
        (i32.store offset=4 (local.get $at) (local.get $name_len))
        (i32.store offset=8 (local.get $at) (local.get $value))
        (i32.store offset=12 (local.get $at) (local.get $value_len))
        (global.set $list_len (i32.add (global.get $list_len) (i32.const 1))))

    (func $all_headers (result i32 i32) (global.get $list) (global.get $list_len))

    (func $same (param $a i32) (param $a_len i32) (param $b i32) (param $b_len i32) (result i32)
        (if (i32.ne (local.get $a_len) (local.get $b_len)) (then (return (i32.const 0))))
        (block $end (loop $next
            (br_if $end (i32.eqz (local.get $a_len)))
            (local.set $a_len (i32.sub (local.get $a_len) (i32.const 1)))
            (if (i32.ne (i32.load8_u (i32.add (local.get $a) (local.get $a_len))) (i32.load8_u (i32.add (local.get $b) (local.get $a_len))))
                (then (return (i32.const 0))))
            (br $next)))
        (i32.const 1))

    (func $put (param $at i32) (param $len i32)
        (memory.copy (i32.add (global.get $out_start) (global.get $out_len)) (local.get $at) (local.get $len))
        (global.set $out_len (i32.add (global.get $out_len) (local.get $len))))

    (func $put_byte (param $byte i32)
        (i32.store8 (i32.add (global.get $out_start) (global.get $out_len)) (local.get $byte))
        (global.set $out_len (i32.add (global.get $out_len) (i32.const 1))))

    (func $put_number (param $number i32)
        (if (i32.ge_u (local.get $number) (i32.const 10))
            (then (call $put_number (i32.div_u (local.get $number) (i32.const 10)))))
        (call $put_byte (i32.add (i32.const 48) (i32.rem_u (local.get $number) (i32.const 10)))))

    (func $out (result i32 i32) (global.get $out_start) (global.get $out_len))

    ;; A list of pairs of strings: name=value&name=value&
    (func $put_pairs (param $at i32) (param $len i32)
        (block $end (loop $next
            (br_if $end (i32.eqz (local.get $len)))
            (call $put (i32.load (local.get $at)) (i32.load offset=4 (local.get $at)))
            (call $put_byte (i32.const 61))
            (call $put (i32.load offset=8 (local.get $at)) (i32.load offset=12 (local.get $at)))
            (call $put_byte (i32.const 38))
            (local.set $at (i32.add (local.get $at) (i32.const 16)))
            (local.set $len (i32.sub (local.get $len) (i32.const 1)))
            (br $next))))

    (func $describe
        (param $id i32) (param $id_len i32) (param $subject i32) (param $subject_len i32) (param $tail i32) (param $tail_len i32)
        (param $headers i32) (param $headers_len i32) (param $payload i32) (param $payload_len i32)
        (call $put (local.get $id) (local.get $id_len))
        (call $put_byte (i32.const 124))
        (call $put (local.get $subject) (local.get $subject_len))
        (call $put_byte (i32.const 124))
        (call $put (local.get $tail) (local.get $tail_len))
        (call $put_byte (i32.const 124))
        (call $put_pairs (local.get $headers) (local.get $headers_len))
        (call $put_byte (i32.const 124))
        (call $put (local.get $payload) (local.get $payload_len)))

    (func $recurse (param i32) (result i32)
        (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
"#;

// ---- Files -------------------------------------------------------------------------------

/// A folder with plugins.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// With these plugins as `NAME.wasm`.
    pub fn with(plugins: &[(&str, &Component)]) -> Self {
        let folder = Self::new();
        for (name, component) in plugins {
            folder.add(name, component);
        }
        folder
    }

    pub fn add(&self, name: &str, component: &Component) -> PathBuf {
        self.write(&format!("{name}.wasm"), &component.binary())
    }

    /// Writes a file of any content.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder as a value of `PLUGINS`.
    pub fn all(&self) -> String {
        self.0.path().to_str().unwrap().to_owned()
    }

    /// These files of it as a value of `PLUGINS`.
    pub fn list(&self, names: &[&str]) -> String {
        let paths: Vec<_> = names
            .iter()
            .map(|name| self.0.path().join(name).to_str().unwrap().to_owned())
            .collect();
        paths.join(":")
    }
}
