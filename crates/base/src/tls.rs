//! The platform's private certificate authority, and TLS configurations made from it.
//!
//! Made once at `millrace init` in `<platform>/tls/`: `ca.crt`, `ca.key`, `server.crt`, `server.key`.
//! Every listener presents `server.crt`; every client inside the platform trusts only `ca.crt`
//! and checks the host name (verify-full).

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::files;

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the certificate or key in {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    #[error("cannot read {}", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("the certificates in {} do not make a TLS configuration", path.display())]
    Config {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// The files of one platform's authority.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    folder: PathBuf,
}

impl TlsFiles {
    /// The files in `folder`; nothing is read yet.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The authority's certificate, for clients (`sslrootcert`).
    #[must_use]
    pub fn ca_cert(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The listeners' certificate.
    #[must_use]
    pub fn server_cert(&self) -> PathBuf {
        self.folder.join("server.crt")
    }

    /// The listeners' private key, mode 0600.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// Makes an authority and one server certificate for `hosts` (names and addresses), valid
    /// from yesterday (clocks differ) for ten years.
    ///
    /// # Errors
    /// If a file cannot be written or a host is not a valid name.
    pub fn generate(&self, hosts: &[String], now: crate::Micros) -> Result<(), TlsError> {
        let ca_key = KeyPair::generate()?;
        let mut ca = authority()?;
        let day = time::Duration::days(1);
        let today = date(now);
        (ca.not_before, ca.not_after) = (today - day, today + day * 3650);
        let ca_cert = ca.self_signed(&ca_key)?;
        self.write(&self.authority_key(), ca_key.serialize_pem().as_bytes(), 0o600)?;
        let key = KeyPair::generate()?;
        self.write(&self.server_key(), key.serialize_pem().as_bytes(), 0o600)?;
        self.issue(hosts, now, &key, &Issuer::from_params(&ca, &ca_key))?;
        self.write(&self.ca_cert(), ca_cert.pem().as_bytes(), 0o644)
    }

    /// Makes another certificate for the same server key, of the same authority: whoever trusts the one before trusts it.
    ///
    /// # Errors
    /// If a key is not here, the certificate cannot be written or a host is not a valid name.
    pub fn renew(&self, hosts: &[String], now: crate::Micros) -> Result<(), TlsError> {
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => Ok(KeyPair::from_pem(&text)?),
            Err(source) => Err(TlsError::Key { path, source }),
        };
        let (ca_key, key) = (read(self.authority_key())?, read(self.server_key())?);
        self.issue(hosts, now, &key, &Issuer::from_params(&authority()?, &ca_key))
    }

    fn authority_key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    fn issue(
        &self,
        hosts: &[String],
        now: crate::Micros,
        key: &KeyPair,
        issuer: &Issuer<'_, &KeyPair>,
    ) -> Result<(), TlsError> {
        let (day, today) = (time::Duration::days(1), date(now));
        let mut server = CertificateParams::new(hosts)?;
        server.distinguished_name.push(DnType::CommonName, "millrace");
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        (server.not_before, server.not_after) = (today - day, today + day * 3650);
        self.write(&self.server_cert(), server.signed_by(key, issuer)?.pem().as_bytes(), 0o644)
    }

    /// What a listener presents; TLS 1.2 and 1.3. `alpn` names application protocols, most wanted first.
    ///
    /// # Errors
    /// If a file is absent, damaged, or the key does not belong to the certificate.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let path = self.server_cert();
        let certs = read_certs(&path)?;
        let key_path = self.server_key();
        let key =
            PrivateKeyDer::from_pem_file(&key_path).map_err(|source| TlsError::Read { path: key_path, source })?;
        let bad = |source| TlsError::Config { path: path.clone(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .with_no_client_auth()
            .with_single_cert(certs, key)
            .map_err(bad)?;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A client that trusts this authority alone and checks the host.
    ///
    /// # Errors
    /// If `ca.crt` is absent or damaged.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let path = self.ca_cert();
        let bad = |source| TlsError::Config { path: path.clone(), source };
        let mut roots = RootCertStore::empty();
        for cert in read_certs(&path)? {
            roots.add(cert).map_err(bad)?;
        }
        Ok(Arc::new(
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(bad)?
                .with_root_certificates(roots)
                .with_no_client_auth(),
        ))
    }

    fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
        files::create_dir_all(&self.folder, 0o755)
            .and_then(|()| files::write_atomic(path, bytes, mode))
            .map_err(|source| TlsError::Write { path: path.to_owned(), source })
    }
}

/// Who signs, but for when: it is the same whenever it is asked for.
fn authority() -> Result<CertificateParams, TlsError> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "Millrace private authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(ca)
}

fn date(now: crate::Micros) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(now.0 / 1_000_000).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// The hosts every platform's certificate names: this machine's loopback names, plus `extra`.
#[must_use]
pub fn default_hosts(extra: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    for host in extra {
        let wildcard = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        if !wildcard && !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(|certs| certs.collect::<Result<Vec<_>, _>>())
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Whether `path` exists, is a regular file and is closed to group and others.
///
/// # Errors
/// If the file cannot be looked at.
pub fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o077 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_files_serve_and_verify() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles::in_folder(folder.path().join("tls"));
        files.generate(&default_hosts(&["0.0.0.0".into()]), crate::Clock::wall(&crate::SystemClock::new())).unwrap();
        let before = files.client_config().unwrap();
        assert!(is_private(&files.server_key()).unwrap());
        let shakes = |client: &Arc<ClientConfig>, host: &str| {
            let server = files.server_config(&[b"h2"]).unwrap();
            let mut client =
                rustls::ClientConnection::new(client.clone(), host.to_owned().try_into().unwrap()).unwrap();
            let mut server = rustls::ServerConnection::new(server).unwrap();
            let shaken = (|| {
                for _ in 0..8 {
                    let mut bytes = Vec::new();
                    client.write_tls(&mut bytes).unwrap();
                    server.read_tls(&mut bytes.as_slice()).unwrap();
                    server.process_new_packets()?;
                    let mut bytes = Vec::new();
                    server.write_tls(&mut bytes).unwrap();
                    client.read_tls(&mut bytes.as_slice()).unwrap();
                    client.process_new_packets()?;
                }
                Ok::<_, rustls::Error>(())
            })();
            shaken.is_ok()
        };
        for (host, good) in [("localhost", true), ("127.0.0.1", true), ("10.0.0.4", false), ("example.com", false)] {
            assert_eq!(shakes(&before, host), good, "{host}");
        }
        files.renew(&default_hosts(&["10.0.0.4".into()]), crate::Clock::wall(&crate::SystemClock::new())).unwrap();
        for (host, good) in [("localhost", true), ("10.0.0.4", true), ("example.com", false)] {
            assert_eq!(shakes(&before, host), good, "{host} of another certificate");
        }
        fs::remove_file(files.authority_key()).unwrap();
        assert!(matches!(files.renew(&default_hosts(&[]), crate::Micros(0)), Err(TlsError::Key { .. })));
    }

    #[test]
    fn another_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles::in_folder(folder.path());
        assert!(matches!(files.client_config(), Err(TlsError::Read { .. })));
    }
}
