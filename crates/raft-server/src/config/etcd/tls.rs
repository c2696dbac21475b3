//! etcd's flags about TLS.

use std::path::PathBuf;

use super::{Problem, Reading, Url};
use crate::tls::TlsFiles;

/// Where certificates come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TlsPlan {
    /// From files that exist.
    Files(TlsFiles),
    /// The member makes its own.
    Auto {
        /// For these hosts.
        hosts: Vec<String>,
        /// How long they are good.
        years: u64,
    },
}

/// The names of the flags for one kind of connections.
struct Names {
    cert: &'static str,
    key: &'static str,
    client_cert: Option<&'static str>,
    client_key: Option<&'static str>,
    auth: &'static str,
    ca: &'static str,
    crl: &'static str,
    auto: &'static str,
    common_names: Option<&'static str>,
    host_names: &'static str,
    listen: &'static str,
}

const CLIENTS: Names = Names {
    cert: "cert-file",
    key: "key-file",
    client_cert: None,
    client_key: None,
    auth: "client-cert-auth",
    ca: "trusted-ca-file",
    crl: "client-crl-file",
    auto: "auto-tls",
    common_names: None,
    host_names: "client-cert-allowed-hostname",
    listen: "listen-client-urls",
};

const PEERS: Names = Names {
    cert: "peer-cert-file",
    key: "peer-key-file",
    client_cert: Some("peer-client-cert-file"),
    client_key: Some("peer-client-key-file"),
    auth: "peer-client-cert-auth",
    ca: "peer-trusted-ca-file",
    crl: "peer-crl-file",
    auto: "peer-auto-tls",
    common_names: Some("peer-cert-allowed-cn"),
    host_names: "peer-cert-allowed-hostname",
    listen: "listen-peer-urls",
};

impl Reading {
    /// TLS with clients and among members, for those that some URL asks for.
    pub(super) fn tls(
        &mut self,
        clients: &[Url],
        peers: &[Url],
    ) -> Result<(Option<TlsPlan>, Option<TlsPlan>), Box<Problem>> {
        if peers.iter().any(|url| url.tls) && peers.iter().any(|url| !url.tls) {
            return Err(self.sources.wrong(
                PEERS.listen,
                "some URLs of members begin with http:// and some with https://",
                "one of the two, here and in --initial-advertise-peer-urls",
            ));
        }
        Ok((self.plan(&CLIENTS, clients)?, self.plan(&PEERS, peers)?))
    }

    fn plan(&mut self, names: &Names, urls: &[Url]) -> Result<Option<TlsPlan>, Box<Problem>> {
        let value = |name: &str| self.sources.value(name);
        let path =
            |name: &str| Some(value(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let list = |name: &str| -> Vec<String> {
            let items = value(name).split(',').map(str::trim);
            items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
        };
        let (cert, key) = (path(names.cert), path(names.key));
        let is_auto = self.sources.is_on(names.auto);
        if !urls.iter().any(|url| url.tls) {
            if cert.is_some() || is_auto {
                // As in etcd: the scheme decides.
                self.warnings.push(format!(
                    "--{} and --{} have no effect: no URL in --{} begins with https://",
                    names.cert, names.auto, names.listen
                ));
            }
            return Ok(None);
        }
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) if is_auto => {
                let hosts = urls.iter().filter_map(|url| {
                    let (host, _) = url.address.rsplit_once(':')?;
                    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
                });
                let mut hosts: Vec<String> = hosts.collect();
                hosts.sort();
                hosts.dedup();
                let years = self.number("self-signed-cert-validity", 1, 1000)?;
                return Ok(Some(TlsPlan::Auto { hosts, years }));
            }
            (None, _) => {
                let wrong = format!("it is missing, though --{} asks for https://", names.listen);
                let right = format!("--{} and --{}, or --{}", names.cert, names.key, names.auto);
                return Err(self.sources.wrong(names.cert, wrong, right));
            }
            (Some(_), None) => {
                let wrong = format!("it is missing, though --{} is given", names.cert);
                return Err(self.sources.wrong(names.key, wrong, "the key of that certificate"));
            }
        };
        let trusted_ca = path(names.ca);
        if trusted_ca.is_none() {
            let needs =
                [names.auth, names.crl, names.host_names].into_iter().chain(names.common_names);
            for needs in needs {
                let is_given = self.sources.is_on(needs)
                    || (needs != names.auth && !self.sources.value(needs).is_empty());
                if is_given {
                    let wrong = format!("it is given without --{}", names.ca);
                    let right = format!("the authority that signs: --{} ca.pem", names.ca);
                    return Err(self.sources.wrong(needs, wrong, right));
                }
            }
        }
        Ok(Some(TlsPlan::Files(TlsFiles {
            cert,
            key,
            client_cert: names.client_cert.and_then(path),
            client_key: names.client_key.and_then(path),
            trusted_ca,
            crl: path(names.crl),
            allowed_common_names: names.common_names.map(list).unwrap_or_default(),
            allowed_host_names: list(names.host_names),
            only_1_3: self.versions()?,
        })))
    }

    /// Which versions of TLS are spoken; both unless one is excluded.
    fn versions(&self) -> Result<Option<bool>, Box<Problem>> {
        let wrong = |name: &str, right: &str| {
            let wrong = format!("it is {:?}", self.sources.value(name));
            Err(self.sources.wrong(name, wrong, right))
        };
        let only_1_3 = match self.sources.value("tls-min-version") {
            "" | "TLS1.2" => false,
            "TLS1.3" => true,
            _ => return wrong("tls-min-version", "TLS1.2 or TLS1.3"),
        };
        match self.sources.value("tls-max-version") {
            "" | "TLS1.3" => Ok(only_1_3.then_some(true)),
            "TLS1.2" if !only_1_3 => Ok(Some(false)),
            _ => wrong("tls-max-version", "TLS1.3, or TLS1.2 when the least is not more"),
        }
    }
}
