//! The weights in the box are what their page says: likelihood, size, and music like the corpus's.
#![forbid(unsafe_code)]

use etude_models::bundled::{BUNDLED, load};
use etude_models::data::{Dataset, Pieces, Scores, meter_of};
use etude_models::evaluate::{likelihood, written_likelihood};
use etude_models::generate::{Length, Request, Writer};
use etude_models::sampling::Sampling;
use etude_models::{Loaded, Precision};
use etude_tokenizer::statistics::{Statistics, spreads};
use etude_tokenizer::{Meter, Score};

/// The corpus that a model learned from.
fn corpus(model: &Loaded) -> Scores {
    let source = model.settings["data"]["source"].as_str().expect("a corpus");
    let data = etude::data::load(&[source.into()]).expect("a built-in corpus");
    etude::command::train::scores(data)
}

#[test]
fn every_bundled_model_has_the_likelihood_that_is_told() {
    for bundled in BUNDLED {
        assert!(
            bundled.bytes.len() <= 2_000_000,
            "{}: {} bytes",
            bundled.name,
            bundled.bytes.len()
        );
        let model = load(bundled.name).expect("the weights in the box");
        let encoding = model.config.encoding().expect("its encoding");
        let data = Dataset::new(&corpus(&model), &*encoding, model.config.conditions, 0)
            .expect("its corpus");
        let nll = likelihood(&*model.model, &data.valid).expect("a corpus that fits");
        println!("{}: {:.4} nats a token on {} tokens", bundled.name, nll.per_token, nll.tokens);
        // Four digits are told; the tiers round differently in the sixth.
        assert!((nll.per_token - bundled.valid_nll).abs() < 1e-4, "{}", nll.per_token);
    }
}

#[test]
fn weights_stored_with_fewer_bits_cost_less_than_a_hundredth_of_a_nat() {
    for bundled in BUNDLED {
        let model = load(bundled.name).expect("the weights in the box");
        let encoding = model.config.encoding().expect("its encoding");
        let data = Dataset::new(&corpus(&model), &*encoding, model.config.conditions, 0)
            .expect("its corpus");
        // Some pieces, token by token: the plain loops read some hundred million weights a second. The
        // likelihood of all is that of the test above.
        let (mut read, weights) = (0, model.model.parameter_count());
        let some = data.valid.iter().map(|piece| piece.expect("a piece").into_owned());
        let some = some.take_while(|piece| {
            read += piece.tokens.len() * weights;
            read < 4_000_000_000
        });
        let some = Pieces::from(some.collect::<Vec<_>>());
        assert!(some.token_count() >= 2_000, "{} tokens", some.token_count());
        let of = |precision| {
            let nll =
                written_likelihood(&*model.model, precision, &some).expect("a corpus that fits");
            println!("{} {}: {:.4} nats a token", bundled.name, precision.name(), nll.per_token);
            nll.per_token
        };
        let exact = of(Precision::F32);
        for precision in [Precision::Bf16, Precision::Int8] {
            assert!((of(precision) - exact).abs() < 0.01, "{}", precision.name());
        }
    }
}

#[test]
fn what_the_melody_model_writes_lies_inside_the_spread_of_its_corpus() {
    let model = load("lstm").expect("the weights in the box");
    let mut writer = Writer::new(&model.config, &*model.model).expect("a writer");
    let scores = corpus(&model);
    let of = |scores: &[Score]| spreads(&scores.iter().map(Statistics::of).collect::<Vec<_>>());
    let human: Vec<Score> = scores.test.iter().map(|(_, score)| score.clone()).collect();
    let metre = |numerator, denominator| Meter { tick: 0, numerator, denominator };
    let metres = [metre(4, 4), metre(6, 8), metre(3, 4), metre(2, 4), metre(9, 8)];
    let mut written = Vec::new();
    for seed in 0..40 {
        let request = Request {
            length: Length::Bars(16),
            meter: metres[seed as usize % metres.len()],
            tempo_bpm: 120.0,
            primer: None,
            sampling: Sampling { temperature: 0.9, top_p: 0.98, ..Sampling::default() },
            seed,
        };
        let piece = writer.write(&request).expect("a piece").score;
        assert_eq!(meter_of(&piece), request.meter);
        written.push(piece);
    }
    let (ours, theirs) = (of(&written), of(&human));
    let mut compared = 0;
    for name in [
        "pitch_class_entropy",
        "scale_consistency",
        "groove_consistency",
        "longest_repeat",
        "repeated_bars",
        "notes_per_bar",
        "pitches",
        "range",
        "on_beat",
    ] {
        let find = |all: &[etude_tokenizer::statistics::Spread]| {
            all.iter().find(|s| s.name == name).cloned().expect("a statistic of melodies")
        };
        let (ours, theirs) = (find(&ours), find(&theirs));
        println!("{name}: {:.3} in {:.3} to {:.3}", ours.median, theirs.p5, theirs.p95);
        assert!((theirs.p5..=theirs.p95).contains(&ours.median), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 9);
}
