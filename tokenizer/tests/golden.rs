//! Golden vectors: tokens worked out by hand, the same music in every encoding.

use etude_tokenizer::twins::{self, Sketch};
use etude_tokenizer::{FORMAT, Note, PianoRoll, Repeats, Score, Track, encoding, schemes};

fn score_of(notes: &[(u64, u64, u8)]) -> Score {
    let note = |&(tick, duration, pitch)| Note { tick, duration, pitch, velocity: 90 };
    let mut score = Score::new(480);
    let notes = notes.iter().map(note).collect();
    score.tracks.push(Track { notes, ..Track::default() });
    score
}

fn assert_tokens(scheme: &str, score: &Score, expected: &[u32]) {
    let encoding = encoding(scheme).expect("a scheme");
    let tokens = encoding.encode(score).expect("an encodable score").tokens;
    assert_eq!(tokens, expected, "{scheme}");
    let back = encoding.decode(&tokens).expect("known tokens");
    assert_eq!(back, encoding.quantise(score), "{scheme}");
}

#[test]
fn nothing_is_no_tokens_or_the_frame_of_a_piece() {
    let empty = Score::new(480);
    for scheme in ["melody", "melody-lookback", "melody-key", "drums", "drums-one"] {
        assert_tokens(scheme, &empty, &[]);
    }
    for scheme in ["performance", "performance-dynamics", "performance-note"] {
        assert_tokens(scheme, &empty, &[]);
    }
    // START, END.
    assert_tokens("polyphony", &empty, &[0, 1]);
    assert!(PianoRoll::of(&empty, 4, Repeats::Split).0.rows().is_empty());
}

#[test]
fn one_quarter_of_middle_c() {
    let score = score_of(&[(0, 480, 60)]);
    // 2 + 60 - 48, and nothing for three sixteenths.
    assert_tokens("melody", &score, &[14, 0, 0, 0]);
    assert_tokens("melody-mono", &score, &[62, 0, 0, 0]);
    // Nothing, in the first two bars, repeats the silence two bars before.
    assert_tokens("melody-lookback", &score, &[14, 39, 39, 39]);
    assert_tokens("melody-key", &score, &[12, 39, 39, 39]);
    // START, 3 + 60, STEP_END, three times 131 + 60 and STEP_END, END.
    assert_tokens("polyphony", &score, &[0, 63, 2, 191, 2, 191, 2, 191, 2, 1]);
    // Half a second is 50 steps: 256 + 50 - 1. Velocity 90 lies in bin (90 - 1) / 4 = 22.
    assert_tokens("performance", &score, &[60, 305, 188]);
    assert_tokens("performance-dynamics", &score, &[356 + 22, 60, 305, 188]);
    // Heads begin at 0, 13, 90, 218, 250, 275; duration 50 - 1 = 1 x 40 + 9.
    assert_tokens("performance-note", &score, &[0, 13, 150, 240, 251, 284]);
    assert_tokens("drums", &score, &[]);
    let (roll, lost) = PianoRoll::of(&score, 1, Repeats::Held);
    assert_eq!((roll.rows(), lost), (&[1 << 39][..], vec![]));
}

#[test]
fn triplets_go_to_the_nearest_step() {
    // Eighth triplets C D E: ticks 0, 160, 320, 480. In sixteenths of 120: 0, 1.33, 2.67, 4.
    let score = score_of(&[(0, 160, 60), (160, 160, 62), (320, 160, 64)]);
    assert_tokens("melody", &score, &[14, 16, 0, 18]);
    assert_tokens("melody-lookback", &score, &[14, 16, 39, 18]);
    assert_tokens("melody-key", &score, &[12, 14, 39, 16]);
    assert_tokens("polyphony", &score, &[0, 63, 2, 65, 2, 131 + 62, 2, 67, 2, 1]);
    // In steps of 10 ms: 0, 16.67, 33.33, 50, so shifts of 17, 16 and 17.
    let expected = [60, 272, 188, 62, 271, 190, 64, 272, 192];
    assert_tokens("performance", &score, &expected);
    let drums = {
        let mut drums = score_of(&[(0, 160, 36), (160, 160, 38), (320, 160, 42)]);
        drums.tracks[0].is_drum = true;
        drums
    };
    // Kick 1, snare 2, rest, closed hat 4. In eighths of 240: 0, 0.67, 1.33.
    assert_tokens("drums", &drums, &[1, 2, 0, 4]);
    assert_tokens("drums-one", &drums, &[1, 1]);
}

#[test]
fn a_note_tied_over_the_bar_is_one_note() {
    // From beat 4, tick 1440, for two quarters; then its repeat two bars later.
    let score = score_of(&[(1440, 960, 60), (1440 + 3840, 960, 60)]);
    let melody: Vec<u32> = [&[0; 12][..], &[14], &[0; 7], &[1], &[0; 23], &[14], &[0; 7]].concat();
    assert_tokens("melody", &score, &melody);
    // Step 44, in the fourth bar, is C as 32 steps before, and the steps after it are nothing, as
    // there. Steps 32 to 43 are nothing as in the first bar. So all but the first C and the
    // note-off repeats two bars.
    let labels: Vec<u32> = [&[39; 12][..], &[14], &[39; 7], &[1], &[39; 31]].concat();
    assert_tokens("melody-lookback", &score, &labels);
    let steps = |token: u32, count: usize| [token, 2].repeat(count);
    let held: Vec<u32> = [&[63, 2][..], &steps(191, 7)].concat();
    let piece = [&[0][..], &[2; 12], &held, &[2; 24], &held, &[1]].concat();
    assert_tokens("polyphony", &score, &piece);
}

#[test]
fn what_is_beyond_the_range_is_moved_or_counted() {
    // Two octaves down 110 is 86, still beyond 83; three octaves down 64 and 74 are inside.
    let score = score_of(&[(0, 120, 100), (120, 120, 110), (240, 120, 100)]);
    assert_tokens("melody", &score, &[18, 28, 18]);
    assert_tokens("melody-key", &score, &[16, 26, 16]);
    assert_tokens("melody-mono", &score, &[102, 112, 102]);
    let (roll, lost) = PianoRoll::of(&score, 4, Repeats::Held);
    assert_eq!((roll.rows().len(), lost), (3, vec![("beyond the 88 keys".to_string(), 1)]));
}

#[test]
fn notes_far_away_and_without_end_cost_a_bounded_number_of_tokens() {
    let far = 1u64 << 31;
    let notes =
        [(0, 240, 36), (0, far, 60), (240, u64::MAX, 62), (far, 240, 64), (u64::MAX, u64::MAX, 67)];
    for ticks_per_quarter in [1, 480, 32_767] {
        let mut score = score_of(&notes);
        score.ticks_per_quarter = ticks_per_quarter;
        score.tracks.push(Track { is_drum: true, ..score.tracks[0].clone() });
        // 128 pitches held for as long as any scheme holds them.
        let held = (0..128).map(|pitch| Note { tick: 0, duration: far, pitch, velocity: 90 });
        score.tracks.push(Track { notes: held.collect(), ..Track::default() });
        for (scheme, _) in etude_tokenizer::schemes() {
            let encoding = encoding(scheme).expect("a scheme");
            let tokens = encoding.encode(&score).expect("an encodable score").tokens;
            // 2^18 steps, and 2^20 tokens of held notes in the scheme that tells each step of them.
            assert!(tokens.len() <= (1 << 18) + (1 << 20) + 2, "{scheme}: {}", tokens.len());
            let back = encoding.decode(&tokens).expect("known tokens");
            assert_eq!(back, encoding.quantise(&score), "{scheme}");
        }
    }
}

/// Tokens and sketches that lie on a disk are those of this form. Where this fails a change of reading,
/// encoding or sketching gives others: raise `FORMAT`, and then write the new number here. A scheme
/// that is new needs the new number alone.
#[test]
fn the_form_of_kept_tokens_has_a_number() {
    let mut score = score_of(&[
        (0, 240, 60),
        (240, 240, 64),
        (480, 480, 67),
        (960, 360, 65),
        (1320, 120, 62),
        (1440, 480, 60),
        (1920, 240, 72),
        (2160, 240, 71),
        (2400, 480, 69),
        (2880, 960, 67),
        (3840, 480, 60),
    ]);
    score.tracks.push(Track { is_drum: true, ..score.tracks[0].clone() });
    let mut hash = twins::mix(0);
    let mut add = |bytes: &[u8]| {
        bytes.iter().for_each(|byte| hash = twins::mix(hash ^ u64::from(*byte)));
    };
    for (scheme, _) in schemes() {
        // Schemes of no drums and of drums alone leave out what is not theirs.
        let tokens = encoding(scheme).unwrap().encode(&score).unwrap().tokens;
        add(scheme.as_bytes());
        tokens.iter().for_each(|token| add(&token.to_le_bytes()));
    }
    add(&Sketch::of(&score).unwrap().to_bytes());
    assert_eq!((FORMAT, hash), (1, 8_165_595_943_426_198_652));
}
