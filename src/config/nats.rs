//! What the variables say about the connection to NATS, and what a context adds to them.
//!
//! A variable wins over the context's field of the same meaning. The login counts as one: a way
//! to log in that the variables have leaves the context's other ways aside.

use crate::certificates;
use crate::config::context::Context;
use crate::config::reader::{Reader, is_subject};
use crate::config::variables::{
    NATS_CA, NATS_CERT, NATS_CONTEXT, NATS_CREDS, NATS_HOST, NATS_INBOX_PREFIX, NATS_JWT, NATS_KEY,
    NATS_NKEY, NATS_PASS, NATS_SEED, NATS_TLS_FIRST, NATS_TOKEN, NATS_USER, Variable,
};
use crate::nats::jwt::Claims;
use crate::nats::login::{Login, SecretSource, user_key};
use crate::nats::settings::{INBOX_PREFIX, Settings};
use crate::nats::tls::Tls;
use crate::secret::Secret;
use async_nats::ServerAddr;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use std::path::{Path, PathBuf};

/// Where the `nats` command line connects to when a context has no URL.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const FROM_URL: &str = "the user info in NATS_HOST, or set NATS_USER and NATS_PASS";

/// A setting, and the variable or field that it is from.
struct Told<T> {
    by: String,
    value: T,
}

/// Where the variables say to look for the connection.
pub(super) struct Connection {
    /// Whether they name servers themselves.
    has_host: bool,
    pub(super) context: Option<Context>,
    /// Whether a context was asked for and could not be read.
    is_unreadable: bool,
}

impl Reader<'_> {
    /// The context that is named or, where no server is, selected.
    pub(super) fn connection(&mut self) -> Connection {
        let is_set = |name: &str| {
            [name, &format!("{name}_FILE")].iter().any(|name| self.environment.get(name).is_some())
        };
        let has_host = NATS_HOST.names().any(is_set);
        let context = match self.text(&NATS_CONTEXT) {
            Some(name) => Context::named(self.environment, &name).map(Some),
            None if has_host => Ok(None),
            None => Context::selected(self.environment),
        };
        let context = self.good(context.map_err(|error| format!("NATS_CONTEXT: {error}")));
        let is_unreadable = context.is_none();
        Connection { has_host, context: context.flatten(), is_unreadable }
    }

    pub(super) fn nats(&mut self, connection: &Connection) -> Option<Settings> {
        let Connection { has_host, context, is_unreadable } = connection;
        let context = context.as_ref();
        let urls = match (has_host, context) {
            (false, Some(context)) => self.context_servers(context),
            (false, None) if *is_unreadable => None,
            _ => self.required(
                &NATS_HOST,
                "server URLs (nats:// tls:// ws:// wss://) separated by commas",
                servers,
            ),
        };
        let known = urls.as_deref().unwrap_or_default();
        let login = self.login(known, *has_host, context);
        let tls = self.tls(known, context);
        let expected = "a subject prefix such as _INBOX_relay";
        let inbox_prefix = self.optional(&NATS_INBOX_PREFIX, expected, is_subject);
        let inbox_prefix = inbox_prefix.or_else(|| self.field(context, "inbox_prefix", is_subject));
        if let Some(context) = context
            && context.text("socks_proxy").is_ok_and(|text| text.is_some())
        {
            self.mistake_in(
                context,
                "socks_proxy: a proxy is not supported; use a context without one",
            );
        }
        let servers = urls?.into_iter().filter_map(|mut url| {
            // async-nats does not read the user info and would show it in its logs.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            ServerAddr::from_url(url).ok()
        });
        Some(Settings {
            servers: servers.collect(),
            login: login.value,
            login_from: login.by,
            tls,
            inbox_prefix: inbox_prefix.unwrap_or_else(|| INBOX_PREFIX.to_owned()),
            context: context.map(Context::to_string),
        })
    }

    /// The value of a context's field; a mistake where it does not parse.
    pub(super) fn field<T>(
        &mut self,
        context: Option<&Context>,
        field: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let context = context?;
        match context.text(field) {
            Ok(text) => {
                let value = text.map(parse)?;
                if value.is_none() {
                    self.mistake_in(context, &format!("{field}: is not valid"));
                }
                value
            }
            Err(error) => {
                self.mistake_in(context, &error);
                None
            }
        }
    }

    fn mistake_in(&mut self, context: &Context, text: &str) {
        self.mistakes.push(format!("NATS_CONTEXT: {context}: {text}"));
    }

    /// What `get` finds in the context; a mistake where it cannot be read.
    fn told_by<T>(
        &mut self,
        context: Option<&Context>,
        field: &str,
        get: impl Fn(&Context, &str) -> Result<Option<T>, String>,
    ) -> Option<Told<T>> {
        let context = context?;
        match get(context, field) {
            Ok(value) => value.map(|value| Told { by: format!("{field} of {context}"), value }),
            Err(error) => {
                self.mistake_in(context, &error);
                None
            }
        }
    }

    fn context_servers(&mut self, context: &Context) -> Option<Vec<Url>> {
        match context.text("url") {
            Ok(text) => {
                let urls = servers(text.unwrap_or(DEFAULT_URL));
                if urls.is_none() {
                    self.mistake_in(
                        context,
                        "url: expected server URLs (nats:// tls:// ws:// \
                     wss://) separated by commas",
                    );
                }
                urls
            }
            Err(error) => {
                self.mistake_in(context, &error);
                None
            }
        }
    }

    /// A way to log in of the variables, else of the URL in them, else of the context.
    fn login(&mut self, urls: &[Url], has_host: bool, context: Option<&Context>) -> Told<Login> {
        let before = self.mistakes.len();
        let user = self.optional(&NATS_USER, "a user name", |text| Some(text.to_owned()));
        let password = self.optional(&NATS_PASS, "a password", |text| Some(Secret::new(text)));
        let token = self.optional(&NATS_TOKEN, "a token", |text| Some(Secret::new(text)));
        let creds = self.source(
            &NATS_CREDS,
            |text| text.starts_with("-----BEGIN NATS"),
            |source| Login::Credentials(source).check(),
        );
        let nkey = self.source(&NATS_NKEY, is_seed, |source| Login::Nkey(source).check());
        let jwt = self.part(&NATS_JWT, |text| Claims::find(text).map(drop));
        let seed = self.part(&NATS_SEED, |text| user_key(text).map(drop));

        let ways = [
            user.as_ref().map(|_| "NATS_USER").or(password.as_ref().map(|_| "NATS_PASS")),
            token.as_ref().map(|_| "NATS_TOKEN"),
            creds.as_ref().map(|_| "NATS_CREDS"),
            nkey.as_ref().map(|_| "NATS_NKEY"),
            jwt.as_ref().map(|_| "NATS_JWT").or(seed.as_ref().map(|_| "NATS_SEED")),
        ];
        let mut ways = ways.into_iter().flatten();
        let way = ways.next();
        for other in ways {
            self.mistakes.push(format!(
                "{other}: {} is set too, and there is one way to log in; unset one",
                way.unwrap_or_default()
            ));
        }
        let of_url = urls.iter().map(url_login).find(|login| *login != Login::Anonymous);
        if let Some(way) = way
            .filter(|way| has_host && of_url.is_some() && !["NATS_USER", "NATS_PASS"].contains(way))
        {
            self.mistakes.push(format!(
                "{way}: the URL in NATS_HOST has a login too, and there is \
             one way to log in; take one out"
            ));
        }
        match way {
            Some("NATS_USER" | "NATS_PASS") => self.password(user, password, context),
            Some("NATS_JWT" | "NATS_SEED") => self.jwt(jwt, seed, context, before),
            Some(way) => {
                let login = token
                    .map(Login::Token)
                    .or(creds.map(Login::Credentials))
                    .or(nkey.map(Login::Nkey));
                Told { by: way.to_owned(), value: login.unwrap_or(Login::Anonymous) }
            }
            None => match of_url {
                Some(login) if has_host => Told { by: FROM_URL.to_owned(), value: login },
                of_url => self.context_login(context, of_url),
            },
        }
    }

    fn password(
        &mut self,
        user: Option<String>,
        password: Option<Secret>,
        context: Option<&Context>,
    ) -> Told<Login> {
        let environment = self.environment;
        let user = user.or_else(|| self.field(context, "user", |text| Some(text.to_owned())));
        let password = password.or_else(|| {
            let secret = self
                .told_by(context, "password", |context, field| context.secret(environment, field));
            secret.map(|told| told.value)
        });
        if user.is_none() {
            self.mistakes.push("NATS_PASS: set without NATS_USER; set both or neither".to_owned());
        }
        let password = password.unwrap_or_else(|| Secret::new(""));
        Told {
            by: "NATS_USER and NATS_PASS".to_owned(),
            value: Login::Password { user: user.unwrap_or_default(), password },
        }
    }

    /// `before` is how many mistakes there were before the login: where it has one, no other
    /// follows from that.
    fn jwt(
        &mut self,
        jwt: Option<Secret>,
        seed: Option<Secret>,
        context: Option<&Context>,
        before: usize,
    ) -> Told<Login> {
        let environment = self.environment;
        let mut other = |field| {
            let secret =
                self.told_by(context, field, |context, field| context.secret(environment, field));
            secret.map(|told| told.value)
        };
        let jwt = jwt.or_else(|| other("user_jwt"));
        let seed = seed.or_else(|| other("user_seed"));
        let login = jwt.map(|jwt| Login::Jwt { jwt, seed });
        let problem = match &login {
            Some(login) => login
                .check()
                .err()
                .map(|error| format!("NATS_SEED: {error}; NATS_JWT and NATS_SEED belong together")),
            None => Some("NATS_SEED: set without NATS_JWT; set both or neither".to_owned()),
        };
        self.mistakes.extend(problem.filter(|_| self.mistakes.len() == before));
        Told { by: "NATS_JWT and NATS_SEED".to_owned(), value: login.unwrap_or(Login::Anonymous) }
    }

    /// The context's way to log in, in the order in which the `nats` command line looks for one.
    fn context_login(&mut self, context: Option<&Context>, of_url: Option<Login>) -> Told<Login> {
        let environment = self.environment;
        let secret = |context: &Context, field: &str| context.secret(environment, field);
        let source = |context: &Context, field: &str| context.source(environment, field);
        let anonymous = || Told { by: String::new(), value: Login::Anonymous };
        let Some(known) = context else { return anonymous() };
        let before = self.mistakes.len();
        let told = if let Some(user) = self.field(context, "user", |text| Some(text.to_owned())) {
            let password = self
                .told_by(context, "password", secret)
                .map_or_else(|| Secret::new(""), |told| told.value);
            Some(Told {
                by: format!("user and password of {known}"),
                value: Login::Password { user, password },
            })
        } else if let Some(creds) = self.told_by(context, "creds", source) {
            Some(Told { by: creds.by, value: Login::Credentials(creds.value) })
        } else if let Some(nkey) = self.told_by(context, "nkey", source) {
            Some(Told { by: nkey.by, value: Login::Nkey(nkey.value) })
        } else if let Some(jwt) = self.told_by(context, "user_jwt", secret) {
            let seed = self.told_by(context, "user_seed", secret).map(|told| told.value);
            Some(Told { by: jwt.by, value: Login::Jwt { jwt: jwt.value, seed } })
        } else if let Some(token) = self.told_by(context, "token", secret) {
            Some(Told { by: token.by, value: Login::Token(token.value) })
        } else {
            of_url
                .map(|login| Told { by: format!("the user info in url of {known}"), value: login })
        };
        if self.mistakes.len() > before {
            return anonymous();
        }
        let Some(told) = told else {
            if self.field(context, "nsc", |_| Some(())).is_some() {
                self.mistake_in(
                    known,
                    "nsc: is not supported: save what nsc generate creds \
                 prints, and set NATS_CREDS to that file",
                );
            }
            return anonymous();
        };
        if let Err(error) = told.value.check() {
            self.mistakes.push(format!("NATS_CONTEXT: {}: {error}", told.by));
        }
        told
    }

    fn tls(&mut self, urls: &[Url], context: Option<&Context>) -> Tls {
        let before = self.mistakes.len();
        let ca = self.path(&NATS_CA, context, "ca", certificates::authorities);
        let certificate = self.path(&NATS_CERT, context, "cert", certificates::certificates);
        let key = self.path(&NATS_KEY, context, "key", certificates::key);
        let are_readable = self.mistakes.len() == before;
        let is_first = self.flag(&NATS_TLS_FIRST);
        let first_by = match self.environment.get(NATS_TLS_FIRST.name) {
            Some(_) => is_first.then(|| "NATS_TLS_FIRST".to_owned()),
            None => self
                .told_by(context, "tls_first", |context, field| {
                    context.flag(field).map(|flag| flag.then_some(()))
                })
                .map(|told| format!("NATS_CONTEXT: {}", told.by)),
        };
        if certificate.is_none()
            && let Some(context) = context
            && context.text("windows_cert_store").is_ok_and(|text| text.is_some())
        {
            self.mistake_in(
                context,
                "windows_cert_store: is not supported: set NATS_CERT and NATS_KEY to files",
            );
        }
        let plain = urls.iter().any(|url| url.scheme() == "ws");
        let asked = [ca.as_ref(), certificate.as_ref()]
            .into_iter()
            .flatten()
            .map(|told| &told.by)
            .chain(&first_by);
        if let Some(by) = asked.clone().next().filter(|_| plain) {
            self.mistakes
                .push(format!("{by}: is about TLS, and ws:// is a connection without; use wss://"));
        }
        let required = asked.count() > 0 || urls.iter().any(|url| url.scheme() == "tls");
        let identity = if are_readable { self.identity(certificate, key) } else { None };
        Tls { identity, ca: ca.map(|told| told.value.0), first: first_by.is_some(), required }
    }

    fn identity(
        &mut self,
        certificate: Option<Told<(PathBuf, Vec<CertificateDer<'static>>)>>,
        key: Option<Told<(PathBuf, PrivateKeyDer<'static>)>>,
    ) -> Option<(PathBuf, PathBuf)> {
        match (certificate, key) {
            (
                Some(Told { by, value: (certificate, chain) }),
                Some(Told { by: key_by, value: (key, private) }),
            ) => {
                if let Err(error) = certificates::identity(chain, private) {
                    self.mistakes.push(format!("{key_by}: {error} ({by})"));
                }
                Some((certificate, key))
            }
            (Some(certificate), None) => {
                self.mistakes
                    .push(format!("{}: set without NATS_KEY; set both or neither", certificate.by));
                None
            }
            (None, Some(key)) => {
                self.mistakes
                    .push(format!("{}: set without NATS_CERT; set both or neither", key.by));
                None
            }
            (None, None) => None,
        }
    }

    /// The path of a variable, or else of a field, with what `read` finds in that file.
    fn path<T>(
        &mut self,
        variable: &Variable,
        context: Option<&Context>,
        field: &str,
        read: impl Fn(&Path) -> Result<T, String>,
    ) -> Option<Told<(PathBuf, T)>> {
        let (environment, name) = (self.environment, variable.name);
        let told = match self.text(variable) {
            Some(text) if text.contains("-----") => {
                self.mistakes
                    .push(format!("{name}: expected the path of a PEM file, not its content"));
                return None;
            }
            Some(text) => Told { by: name.to_owned(), value: self.path_in(name, &text)? },
            None => {
                let told = self
                    .told_by(context, field, |context, field| context.path(environment, field))?;
                Told { by: format!("NATS_CONTEXT: {}", told.by), value: told.value }
            }
        };
        match read(&told.value) {
            Ok(content) => Some(Told { by: told.by, value: (told.value, content) }),
            Err(error) => {
                self.mistakes.push(format!("{}: {error}", told.by));
                None
            }
        }
    }

    /// The content of a variable where `is_content`, or else the file that it or its `_FILE` form
    /// names.
    fn source(
        &mut self,
        variable: &Variable,
        is_content: impl Fn(&str) -> bool,
        check: impl Fn(SecretSource) -> Result<(), String>,
    ) -> Option<SecretSource> {
        let name = variable.name;
        let text = self.text(variable)?;
        let file = self.environment.get(&format!("{name}_FILE"));
        let source = match file {
            Some(path) => SecretSource::File(self.path_in(name, path)?),
            None if is_content(&text) => SecretSource::Text(Secret::new(text)),
            None => SecretSource::File(self.path_in(name, &text)?),
        };
        check(source.clone())
            .map_err(|error| self.mistakes.push(format!("{name}: {error}")))
            .ok()
            .map(|()| source)
    }

    /// A secret that `check` finds good.
    fn part(
        &mut self,
        variable: &Variable,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Option<Secret> {
        let name = variable.name;
        let text = self.text(variable)?;
        check(&text)
            .map_err(|error| self.mistakes.push(format!("{name}: {error}")))
            .ok()
            .map(|()| Secret::new(text))
    }
}

/// The URLs that a list names.
fn servers(text: &str) -> Option<Vec<Url>> {
    let servers = text.split([',', ' ']).filter(|part| !part.is_empty());
    let urls = servers
        .map(|part| Some(part.parse::<ServerAddr>().ok()?.into_inner()).filter(Url::has_host))
        .collect::<Option<Vec<_>>>()?;
    (!urls.is_empty()).then_some(urls)
}

/// Whether the text is a seed rather than a path, or was meant to be one.
fn is_seed(text: &str) -> bool {
    const SHORTEST: usize = 40;
    let is_base32 = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    (text.starts_with('S') && text.len() > SHORTEST && is_base32) || text.starts_with("-----BEGIN")
}

/// What the user info of a server's URL means to the nats command line: `user:password`, or a
/// token.
fn url_login(url: &Url) -> Login {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    match (url.username(), url.password()) {
        ("", None) => Login::Anonymous,
        (token, None) => Login::Token(Secret::new(decode(token))),
        (user, Some(password)) => {
            Login::Password { user: decode(user), password: Secret::new(decode(password)) }
        }
    }
}
