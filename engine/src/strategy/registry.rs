//! Strategies by name: `NAME[:key=value,…]`, as typed after `--strategy`.

use super::{DowntimeBudget, FixedRounds, StopAndCopy, Strategy};

/// The names that [`parse`] knows, the default first.
pub const NAMES: [&str; 3] = ["downtime-budget", "fixed-rounds", "stop-and-copy"];

/// Why a strategy could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyError {
    /// No strategy of that name.
    #[error("there is no strategy '{0}'; there are: {known}", known = NAMES.join(", "))]
    UnknownName(String),
    /// The strategy has no such parameter.
    #[error("strategy '{strategy}' has no parameter '{key}'")]
    UnknownKey {
        /// The strategy.
        strategy: String,
        /// What was typed.
        key: String,
    },
    /// The parameter's value is not usable.
    #[error("'{0}' is not usable; expected key=value with a number in range")]
    BadValue(String),
}

/// Makes the strategy that `text` describes.
pub fn parse(text: &str) -> Result<Box<dyn Strategy>, StrategyError> {
    let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
    let mut pairs = Vec::new();
    for item in parameters.split(',').filter(|item| !item.is_empty()) {
        pairs.push(item.split_once('=').ok_or_else(|| StrategyError::BadValue(item.into()))?);
    }
    let unknown = |key: &str| StrategyError::UnknownKey { strategy: name.into(), key: key.into() };
    match name {
        "stop-and-copy" => match pairs.first() {
            Some((key, _)) => Err(unknown(key)),
            None => Ok(Box::new(StopAndCopy)),
        },
        "fixed-rounds" => {
            let mut strategy = FixedRounds::default();
            for (key, value) in pairs {
                match key {
                    "rounds" => strategy.rounds = number(key, value)?,
                    _ => return Err(unknown(key)),
                }
            }
            Ok(Box::new(strategy))
        }
        "downtime-budget" => {
            let mut strategy = DowntimeBudget::default();
            for (key, value) in pairs {
                match key {
                    "patience" => strategy.patience = number(key, value)?,
                    "margin" => strategy.margin = share(key, value)?,
                    _ => return Err(unknown(key)),
                }
            }
            Ok(Box::new(strategy))
        }
        _ => Err(StrategyError::UnknownName(name.into())),
    }
}

fn number(key: &str, value: &str) -> Result<u32, StrategyError> {
    value
        .parse()
        .ok()
        .filter(|n| (1..=10_000).contains(n))
        .ok_or_else(|| StrategyError::BadValue(format!("{key}={value}")))
}

fn share(key: &str, value: &str) -> Result<f64, StrategyError> {
    value
        .parse()
        .ok()
        .filter(|share| (0.0..1.0).contains(share))
        .ok_or_else(|| StrategyError::BadValue(format!("{key}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_and_names_itself() {
        for name in NAMES {
            assert_eq!(parse(name).unwrap().name(), name);
        }
    }

    #[test]
    fn parameters_are_read_and_reported() {
        let strategy = parse("fixed-rounds:rounds=3").unwrap();
        assert_eq!(strategy.parameters()["rounds"], "3");
        let strategy = parse("downtime-budget:patience=7,margin=0.1").unwrap();
        assert_eq!(strategy.parameters()["patience"], "7");
    }

    #[test]
    fn mistakes_are_named() {
        assert!(matches!(parse("magic").err(), Some(StrategyError::UnknownName(_))));
        assert!(matches!(parse("fixed-rounds:laps=3").err(), Some(StrategyError::UnknownKey { .. })));
        for bad in [
            "fixed-rounds:rounds=x",
            "fixed-rounds:rounds=0",
            "fixed-rounds:rounds",
            "downtime-budget:margin=2",
        ] {
            assert!(matches!(parse(bad).err(), Some(StrategyError::BadValue(_))), "{bad}");
        }
    }
}
