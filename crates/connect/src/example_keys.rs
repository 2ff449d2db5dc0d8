//! A private key of each kind, made for these tests. Everybody can read them here, so no deployment may ever use them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// 2,048 bits, as PKCS #1.
const RSA: &str = "MIIEowIBAAKCAQEAk9s3_x0fP3jnxoWXSW3QyteD6zCABIHV8NtqUEbTs9yRODb1XDyf4Z_EOYkAhMaWKJFuYAhbIIVmFxYMYiaRqtVxIvrgK6\
    kcK-h5dIRS_9A2iCiq-I0Tzajrgiw83B49dlY07m84tn8Zi7H757if4S9MzCRhvvaOSHZV5XO5gg9VueXbmz39JMZQRcRmF3QPNrlGklt6l9pL\
    E1uoNF2nY61PloNQ-s_OjDSQl4WxrA9Nedef-OETUQk85uaCS83JVOBzvnIBtacSdoaQzgXibAo24idaAl7chbmE9EXHTrUugZLAYBppbilmip\
    LiIua1-_kCfnLhCg_fupbH8swFXwIDAQABAoIBAAfXfBhOie46sjGQEJkx4agobFQzHc8KDc047eIKZ5xQn0PCfRqNEpO2VANogJEKMUOUjFc7\
    341m1dEf97yAPCs50nF0VHhW_z9VlJTOlyepz4KYLufWH6NBiWq9gDrSaxhqyQ2OSOKQ9Mtjv1mnq-nBsZ_axskIgueqnbKjg8a3Mdlry9X8Yj\
    N8j8W0BKVPkrNCz-1dbjQFmqNQm7kwFhckdKM8jfvcrJY9r6Gsh2Tzweos0N7YUcFf6n-KkQgryp1xQ1tV7mnq4LcDwdThYqIJNRdwJLJMczVI\
    XOCmTrHLiTH01jBANuFnZDln1doOh2Ympdus4GgllifWi-ZTe-kCgYEAx5gPlAZElACCY-9mf0yu3_OuxH9_AIfzwdEC8verXvjNe9qmWazEPx\
    iR8qmTAU1pLFkiUy2DpQV4_r0yfOduBsoGneDsUTifyTQ1Qva1B0GQpgS6UFI9iuwGOAFQcF_La3j3o7wSf94Qjedsqmk2SIzIMas36joSNALF\
    nkjTrpkCgYEAvaQdmratnBGjABfgco7mbNWbPmlspPeyGMyoce9KYIijbLGTGhx9nQKC2IFDd5xFjsNJ-Wi-eLC2BeidenStIluf8qsDUgE5OW\
    6SZg_wE8KzFAcCZ77AXlMvrHlYpTq7iLbslY7At_ZUaJRRAKE4nLeycQeqRRcEEYWoZ1s7prcCgYArOmHVW24q59lVr5nxZDhTxMFLSZnGEavX\
    hF8xJDb3gMdwVbDFp0dxqu6hMdzm4U8wDbYDcc4bRY4pDe0LZExOKB86vmYwSSVCPI50jF40zhx3-Hopv0YY-nl2U8KKNBUol7B6w9b13rCTK1\
    Y7qkHZgLQzHbQkhKNApIEMgRVnsQKBgQCPBvwc97Iwh0y8gUWSoRxA8UnI5JJASWBVO-W_KI6cB_HZxIQBqYNDq-UrjTJpP79mUPu10730ILLn\
    -ezrspvx0dDsoPY8HxgdrLtVpqeW_704WaECxecoPO0z08F7vLQ8BFqi4auQE4TN6y68ntuntxQqE3Hj8dvrqza73R88OQKBgBI4FJhlTlk5rv\
    f64kjbZM_6bgKKUu0oqaSaBuOOMqpHkLXij33QebLYhcML0s9il5U_2vNkXb-_1UvBiaXmwMpP78_v1dRSIEsvVuswrV-BjawFXNBfblU9CgYG\
    AQZcdDfW7h-TKIEpO2_lj3rOI-iCgzhPW5RdBGUiupCp0av4";

/// As PKCS #8, like the next two.
const P256: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgiYgBieGJMsIB229QKs7o0ElQY3tuLW4shkv1dY9g806hRANCAATGO7fqx5zf3Y\
    twvmZ_3Xlw_omlsspc-G7tQm57dxA5wMkwGKSH85X1X3xG9bgyXxM1gfowthTcpMHLq0sl2nzV";

const P384: &str = "MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDA_XdVNtS6Wp2bOWoRu5AGH7xT3RvJ2W6a8RrSkWmHWbqBoFITl5HoE0I43uY_mEn\
    6hZANiAASSID80jTziLPqzmZcezN-h6wqBptnc0uPW-iiELyq0fhPSTFMYgIL9nbJcpxF7vdqZZYLDzgCcfHvBQXnZ4oYHy7JaMpoWUcPyLrMP\
    aY3MtrvBzVbjfnwibYekz5RtoKo";

const ED25519: &str = "MC4CAQAwBQYDK2VwBCIEINUf7g9ZNFUXBTmjc7P4NLXKbKUZXzUNl4ahkMX2ktUs";

/// The key that signs with `algorithm`. A secret is as many zeros as the digest has bytes.
pub(crate) fn private(algorithm: Algorithm) -> EncodingKey {
    let der = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
    match algorithm {
        Algorithm::HS256 => EncodingKey::from_secret(&[0; 32]),
        Algorithm::HS384 => EncodingKey::from_secret(&[0; 48]),
        Algorithm::HS512 => EncodingKey::from_secret(&[0; 64]),
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(P256)),
        Algorithm::ES384 => EncodingKey::from_ec_der(&der(P384)),
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der(ED25519)),
        _ => EncodingKey::from_rsa_der(&der(RSA)),
    }
}

/// The key that checks what [`private`] signs, with its `alg`. Then `members` are set; null takes one away.
pub(crate) fn jwk(algorithm: Algorithm, members: &Value) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&private(algorithm), algorithm).unwrap()).unwrap();
    for (name, value) in members.as_object().unwrap() {
        jwk[name] = value.clone();
    }
    jwk.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    jwk
}

/// A JWK Set as text.
pub(crate) fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// A token of `claims`, with this header and nothing else in it.
pub(crate) fn token(header: &Header, claims: &Value) -> String {
    jsonwebtoken::encode(header, claims, &private(header.alg)).unwrap()
}

/// The header of a token that names its key, or does not.
pub(crate) fn header(algorithm: Algorithm, id: Option<&str>) -> Header {
    Header { kid: id.map(str::to_owned), ..Header::new(algorithm) }
}

/// Seconds since 1970, so many from now.
pub(crate) fn at(seconds: i64) -> i64 {
    i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() + seconds
}
