//! The trace ids of X-Ray.

/// Makes a trace id: `Root=1-{epoch seconds}-{96 random bits}`, in hexadecimal.
pub(crate) fn trace_id() -> String {
    let seconds = jiff::Timestamp::now().as_second();
    format!("Root=1-{seconds:08x}-{:024x}", fastrand::u128(..1 << 96))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_has_the_time_and_a_fixed_length() {
        let before = jiff::Timestamp::now().as_second();
        let id = trace_id();
        let seconds = i64::from_str_radix(&id["Root=1-".len()..][..8], 16).unwrap();
        assert!((before..before + 60).contains(&seconds), "{id}");
        assert_eq!(id.len(), "Root=1-6553f100-000000000000000000000000".len());
    }
}
