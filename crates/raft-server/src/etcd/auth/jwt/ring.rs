//! Signing and checking with `ring`, which the program has for TLS: jsonwebtoken itself knows two others only.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{self, ErrorKind, new_error};
use jsonwebtoken::signature::{Error, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};

/// What jsonwebtoken is to use, in the whole process. The utilities are those of JSON Web Keys, which nothing here reads.
static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(Signing::new(*algorithm, key)?)),
    verifier_factory: |algorithm, key| Ok(Box::new(Checking::new(*algorithm, key)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has to happen before any token is made or checked. Whoever embeds the service may have chosen another one before,
/// which is as good.
pub(super) fn install() {
    PROVIDER.install_default().ok();
}

/// A key that signs in its one way.
struct Signing {
    algorithm: Algorithm,
    key: SigningKey,
}

enum SigningKey {
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
    Ec(Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

impl Signing {
    fn new(algorithm: Algorithm, key: &EncodingKey) -> errors::Result<Self> {
        fits(algorithm, key.family())?;
        let der = key.as_bytes();
        let rsa = |encoding: &'static dyn RsaEncoding| -> errors::Result<SigningKey> {
            let pair = RsaKeyPair::from_der(der);
            let pair = pair.map_err(|wrong| ErrorKind::InvalidRsaKey(wrong.to_string()))?;
            Ok(SigningKey::Rsa(Box::new(pair), encoding))
        };
        let ec = |curve: &'static EcdsaSigningAlgorithm| -> errors::Result<SigningKey> {
            let pair = EcdsaKeyPair::from_pkcs8(curve, der, &SystemRandom::new());
            Ok(SigningKey::Ec(Box::new(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)))
        };
        let key = match algorithm {
            Algorithm::HS256 => SigningKey::Hmac(hmac::Key::new(hmac::HMAC_SHA256, der)),
            Algorithm::HS384 => SigningKey::Hmac(hmac::Key::new(hmac::HMAC_SHA384, der)),
            Algorithm::HS512 => SigningKey::Hmac(hmac::Key::new(hmac::HMAC_SHA512, der)),
            Algorithm::RS256 => rsa(&RSA_PKCS1_SHA256)?,
            Algorithm::RS384 => rsa(&RSA_PKCS1_SHA384)?,
            Algorithm::RS512 => rsa(&RSA_PKCS1_SHA512)?,
            Algorithm::PS256 => rsa(&RSA_PSS_SHA256)?,
            Algorithm::PS384 => rsa(&RSA_PSS_SHA384)?,
            Algorithm::PS512 => rsa(&RSA_PSS_SHA512)?,
            Algorithm::ES256 => ec(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            Algorithm::ES384 => ec(&ECDSA_P384_SHA384_FIXED_SIGNING)?,
            // What other programs write says nothing of the public key, which ring would compare.
            Algorithm::EdDSA => SigningKey::Ed(Box::new(
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                    .map_err(|_| ErrorKind::InvalidEddsaKey)?,
            )),
            _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
        };
        Ok(Self { algorithm, key })
    }
}

impl Signer<Vec<u8>> for Signing {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        match &self.key {
            SigningKey::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            SigningKey::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).map_err(|_| Error::new())?;
                Ok(signature)
            }
            SigningKey::Ec(pair) => {
                let signature = pair.sign(&random, message).map_err(|_| Error::new())?;
                Ok(signature.as_ref().to_vec())
            }
            SigningKey::Ed(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl JwtSigner for Signing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// A key that checks in its one way.
struct Checking {
    algorithm: Algorithm,
    key: CheckingKey,
}

enum CheckingKey {
    Hmac(hmac::Key),
    Public(UnparsedPublicKey<Vec<u8>>),
}

impl Checking {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> errors::Result<Self> {
        fits(algorithm, key.family())?;
        let bytes = key.try_get_as_bytes()?;
        let public = |check: &'static dyn VerificationAlgorithm| {
            CheckingKey::Public(UnparsedPublicKey::new(check, bytes.to_vec()))
        };
        let key = match algorithm {
            Algorithm::HS256 => CheckingKey::Hmac(hmac::Key::new(hmac::HMAC_SHA256, bytes)),
            Algorithm::HS384 => CheckingKey::Hmac(hmac::Key::new(hmac::HMAC_SHA384, bytes)),
            Algorithm::HS512 => CheckingKey::Hmac(hmac::Key::new(hmac::HMAC_SHA512, bytes)),
            Algorithm::RS256 => public(&RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => public(&RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => public(&RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => public(&RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => public(&RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => public(&RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => public(&ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => public(&ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => public(&ED25519),
            _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
        };
        Ok(Self { algorithm, key })
    }
}

impl Verifier<Vec<u8>> for Checking {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Error> {
        let checked = match &self.key {
            CheckingKey::Hmac(key) => hmac::verify(key, message, signature),
            CheckingKey::Public(key) => key.verify(message, signature),
        };
        checked.map_err(|_| Error::new())
    }
}

impl JwtVerifier for Checking {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// A key of one family must never be used as one of another: a public key as a secret, say.
fn fits(algorithm: Algorithm, family: AlgorithmFamily) -> errors::Result<()> {
    if algorithm.family() == family {
        return Ok(());
    }
    Err(new_error(ErrorKind::InvalidKeyFormat))
}
