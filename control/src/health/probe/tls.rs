//! TLS under HTTP, by rustls. Every connection shakes hands in full: a resumed session would hide a certificate that has
//! expired since.

use std::hash::{Hash, Hasher};
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Failure;

/// How a server proves who it is.
#[derive(Clone)]
pub struct Tls {
    name: Option<ServerName<'static>>,
    trust: Trust,
    connector: TlsConnector,
}

/// Whose signature under a certificate is good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Anybody's, and the certificate is not looked at.
    Anybody,
    /// That of the machine's own certificate authorities.
    System,
    /// That of these.
    Own(Vec<CertificateDer<'static>>),
}

/// No TLS, or a certificate that is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Its last day is over.
    #[error("the certificate has expired")]
    Expired,
    /// Its first day is to come.
    #[error("the certificate is not valid yet")]
    NotYet,
    /// It is for others.
    #[error("the certificate is not for {0}")]
    Name(String),
    /// Nobody whom we trust has signed it.
    #[error("the certificate is signed by nobody who is trusted")]
    Unknown,
    /// The server does something else on this port.
    #[error("the server does not speak TLS")]
    NoTls,
    /// Anything else, in the words of rustls.
    #[error("TLS: {0}")]
    Other(String),
}

impl Tls {
    /// Certificates must be for `name`; without one they must be for the Host of the request, or the address.
    ///
    /// # Errors
    /// When one of [`Trust::Own`] is no certificate of an authority, or the machine has none, in words.
    pub fn new(name: Option<ServerName<'static>>, trust: Trust) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = match &trust {
            Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Blind(provider))),
            Trust::System => builder.with_root_certificates(system()?),
            Trust::Own(certificates) => builder.with_root_certificates(Arc::new(roots(certificates)?)),
        }
        .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self { name, trust, connector: Arc::new(config).into() })
    }

    /// Shakes hands over `stream` with the server at `address`, which `host` is asked of.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        host: Option<&str>,
        address: IpAddr,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let host = || host.and_then(|host| ServerName::try_from(host.to_owned()).ok());
        let name = self.name.clone().or_else(host).unwrap_or_else(|| address.into());
        let said = name.to_str().into_owned();
        self.connector.connect(name, stream).await.map_err(|error| failed(&error, said))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tls").field("name", &self.name).field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.trust) == (&other.name, &other.trust)
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.trust).hash(state);
    }
}

/// What went wrong with a handshake with `name`.
fn failed(error: &Error, name: String) -> Failure {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            ErrorKind::UnexpectedEof => Failure::Lost("closed by the server".to_owned()),
            _ => Failure::lost(error),
        };
    };
    let wrong = match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Wrong::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Wrong::NotYet,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Wrong::Name(name)
            }
            CertificateError::UnknownIssuer => Wrong::Unknown,
            other => Wrong::Other(other.to_string()),
        },
        rustls::Error::InvalidMessage(_) => Wrong::NoTls,
        other => Wrong::Other(other.to_string()),
    };
    wrong.into()
}

/// The certificates in `pem`.
///
/// # Errors
/// When there are none, in words.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => Err("no certificate in it".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("not certificates in PEM".to_owned()),
    }
}

fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|_| "a certificate in it cannot be read".to_owned())?;
    }
    Ok(roots)
}

/// The machine's certificate authorities, read once.
fn system() -> Result<Arc<RootCertStore>, String> {
    static SYSTEM: OnceLock<Result<Arc<RootCertStore>, String>> = OnceLock::new();
    let read = || {
        let pem = SYSTEM_FILES.iter().find_map(|path| std::fs::read(path).ok());
        let pem = pem.ok_or_else(|| format!("none of {} can be read", SYSTEM_FILES.join(", ")))?;
        let mut roots = RootCertStore::empty();
        // Among so many there are some that no library understands.
        roots.add_parsable_certificates(certificates(&pem)?);
        Ok(Arc::new(roots))
    };
    SYSTEM.get_or_init(read).clone()
}

/// Where distributions keep them: Debian, Ubuntu, Alpine; Fedora and its kin; SUSE.
const SYSTEM_FILES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Takes any certificate. That the server has its key is still checked.
#[derive(Debug)]
struct Blind(Arc<CryptoProvider>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
