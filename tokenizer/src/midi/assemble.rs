//! Events of channels become notes of instruments.
//!
//! Notes of one MIDI track are split by channel and program. A note-off ends the oldest note of
//! its key that still sounds (first in, first out), within the same MIDI track. A note without
//! note-off ends with its track. A pedal move belongs to the program that is set at that time, and
//! a release also to every program of the channel that was left with the pedal down.

use super::warnings::Warnings;
use crate::{Note, Pedal, Score, Track};
use midly::MidiMessage;
use std::collections::{HashMap, VecDeque};

const CHANNELS: usize = 16;
const DRUM_CHANNEL: u8 = 9;
const SUSTAIN: u8 = 64;
const ALL_SOUND_OFF: u8 = 120;
const ALL_NOTES_OFF: u8 = 123;

/// Notes and pedal moves of one MIDI track, channel and program.
struct Part {
    midi_track: usize,
    channel: u8,
    /// `None` until the MIDI track sets a program on the channel.
    program: Option<u8>,
    track: Track,
}

/// A program change, kept for the parts that have none in their own track.
struct ProgramChange {
    tick: u64,
    channel: u8,
    program: u8,
}

/// Gathers the notes of all tracks of a file.
pub(super) struct Assembly {
    parts: Vec<Part>,
    index: HashMap<(usize, u8, Option<u8>), usize>,
    programs: Vec<ProgramChange>,
    /// Open notes by channel and key: part and place in its notes.
    open: Vec<VecDeque<(u32, u32)>>,
    /// Keys that were opened since the track began, to be looked at when it ends.
    touched: Vec<u16>,
    open_count: [usize; CHANNELS],
    now: [Option<u8>; CHANNELS],
    /// The part of each channel's current program, once it was asked for.
    current: [Option<usize>; CHANNELS],
    /// Parts that were left with the pedal down.
    pedal_down: [Vec<usize>; CHANNELS],
    midi_track: usize,
    /// Note-ons read, velocity above 0.
    pub(super) note_ons: usize,
}

impl Assembly {
    pub(super) fn new() -> Assembly {
        Assembly {
            parts: Vec::new(),
            index: HashMap::new(),
            programs: Vec::new(),
            open: vec![VecDeque::new(); CHANNELS * 128],
            touched: Vec::new(),
            open_count: [0; CHANNELS],
            now: [None; CHANNELS],
            current: [None; CHANNELS],
            pedal_down: std::array::from_fn(|_| Vec::new()),
            midi_track: 0,
            note_ons: 0,
        }
    }

    /// Takes a channel message of the current MIDI track.
    pub(super) fn take(
        &mut self,
        tick: u64,
        channel: u8,
        message: MidiMessage,
        warnings: &mut Warnings,
    ) {
        match message {
            MidiMessage::NoteOn { key, vel } if vel.as_int() > 0 => {
                self.begin(tick, channel, key.as_int(), vel.as_int());
            }
            MidiMessage::NoteOn { key, .. } | MidiMessage::NoteOff { key, .. } => {
                let ended = self.end(tick, channel, key.as_int(), warnings);
                let number = self.midi_track + 1;
                if !ended {
                    warnings.add("note-off", || {
                        format!(
                            "track {number}, tick {tick}: a note-off of key {key} without a note \
                             is ignored"
                        )
                    });
                }
            }
            MidiMessage::ProgramChange { program } => {
                let program = program.as_int();
                self.programs.push(ProgramChange { tick, channel, program });
                self.set_program(tick, channel, program);
            }
            MidiMessage::Controller { controller, value } => match controller.as_int() {
                SUSTAIN => self.pedal(tick, channel, value.as_int()),
                ALL_SOUND_OFF | ALL_NOTES_OFF => self.end_channel(tick, channel, warnings),
                _ => {}
            },
            _ => {}
        }
    }

    fn part(&mut self, channel: u8) -> usize {
        let c = usize::from(channel);
        if let Some(part) = self.current[c] {
            return part;
        }
        let (program, midi_track) = (self.now[c], self.midi_track);
        let parts = &mut self.parts;
        let part = *self.index.entry((midi_track, channel, program)).or_insert_with(|| {
            parts.push(Part { midi_track, channel, program, track: Track::default() });
            parts.len() - 1
        });
        self.current[c] = Some(part);
        part
    }

    fn begin(&mut self, tick: u64, channel: u8, pitch: u8, velocity: u8) {
        self.note_ons += 1;
        let part = self.part(channel);
        let notes = &mut self.parts[part].track.notes;
        let slot = usize::from(channel) * 128 + usize::from(pitch);
        if self.open[slot].is_empty() {
            self.touched.push(slot as u16);
        }
        self.open[slot].push_back((part as u32, notes.len() as u32));
        self.open_count[usize::from(channel)] += 1;
        notes.push(Note { tick, duration: 0, pitch, velocity });
    }

    /// Ends the oldest open note of a key; false if there is none.
    fn end(&mut self, tick: u64, channel: u8, pitch: u8, warnings: &mut Warnings) -> bool {
        let slot = usize::from(channel) * 128 + usize::from(pitch);
        let Some((part, place)) = self.open[slot].pop_front() else {
            return false;
        };
        self.open_count[usize::from(channel)] -= 1;
        let note = &mut self.parts[part as usize].track.notes[place as usize];
        note.duration = (tick - note.tick).max(1);
        if tick == note.tick {
            let number = self.midi_track + 1;
            warnings.add("no length", || {
                format!("track {number}, tick {tick}: a note of no length is given one tick")
            });
        }
        true
    }

    fn end_channel(&mut self, tick: u64, channel: u8, warnings: &mut Warnings) {
        for pitch in 0..128 {
            if self.open_count[usize::from(channel)] == 0 {
                return;
            }
            while self.end(tick, channel, pitch, warnings) {}
        }
    }

    fn set_program(&mut self, tick: u64, channel: u8, program: u8) {
        let c = usize::from(channel);
        let held = !self.pedal_down[c].is_empty();
        (self.now[c], self.current[c]) = (Some(program), None);
        if held {
            let part = self.part(channel);
            if !self.pedal_down[c].contains(&part) {
                self.pedal_down[c].push(part);
                self.parts[part].track.pedals.push(Pedal { tick, value: 127 });
            }
        }
    }

    fn pedal(&mut self, tick: u64, channel: u8, value: u8) {
        let c = usize::from(channel);
        let part = self.part(channel);
        let down = &mut self.pedal_down[c];
        if value >= 64 {
            if !down.contains(&part) {
                down.push(part);
            }
        } else {
            for part in down.drain(..).filter(|&other| other != part) {
                self.parts[part].track.pedals.push(Pedal { tick, value });
            }
        }
        self.parts[part].track.pedals.push(Pedal { tick, value });
    }

    /// Ends the current MIDI track at a tick: hanging notes end there.
    pub(super) fn end_track(&mut self, tick: u64, name: &str, warnings: &mut Warnings) {
        for slot in std::mem::take(&mut self.touched) {
            let (channel, pitch) = (slot / 128, slot % 128);
            while let Some((part, place)) = self.open[usize::from(slot)].pop_front() {
                let note = &mut self.parts[part as usize].track.notes[place as usize];
                note.duration = (tick - note.tick).max(1);
                let (number, from) = (self.midi_track + 1, note.tick);
                warnings.add("hanging", || {
                    format!(
                        "track {number}, tick {from}: a note of key {pitch}, channel {}, has no \
                         note-off; it ends with its track",
                        channel + 1
                    )
                });
            }
        }
        for part in self.parts.iter_mut().rev().take_while(|p| p.midi_track == self.midi_track) {
            part.track.name = name.to_string();
        }
        self.midi_track += 1;
        self.open_count = [0; CHANNELS];
        self.now = [None; CHANNELS];
        self.current = [None; CHANNELS];
        self.pedal_down.iter_mut().for_each(Vec::clear);
    }

    /// Puts the instruments with notes into the score, in order of MIDI track and appearance.
    pub(super) fn finish(mut self, score: &mut Score) {
        self.programs.sort_by_key(|change| change.tick);
        self.settle_programs();
        self.settle_pedals();
        for part in &mut self.parts {
            part.track.program = part.program.unwrap_or(0);
            part.track.is_drum = part.channel == DRUM_CHANNEL;
            part.track.notes.sort_by_key(|note| (note.tick, note.pitch));
            part.track.notes.shrink_to_fit();
        }
        let tracks = self.parts.into_iter().map(|part| part.track);
        score.tracks = tracks.filter(|track| !track.notes.is_empty()).collect();
    }

    /// A channel's program may be set in another track than the notes: takes the one in force
    /// when the first note begins, else the first.
    fn settle_programs(&mut self) {
        let mut by_channel: [Vec<(u64, u8)>; CHANNELS] = std::array::from_fn(|_| Vec::new());
        for change in &self.programs {
            by_channel[usize::from(change.channel)].push((change.tick, change.program));
        }
        for part in self.parts.iter_mut().filter(|part| part.program.is_none()) {
            let Some(first) = part.track.notes.first() else { continue };
            let changes = &by_channel[usize::from(part.channel)];
            let set = changes.partition_point(|&(tick, _)| tick <= first.tick);
            // A change that comes later in the part's own track is not meant for these notes.
            part.program = set.checked_sub(1).map(|last| changes[last].1);
        }
    }

    /// Pedal moves in a MIDI track without notes on the channel go to the first part that has
    /// notes on it.
    fn settle_pedals(&mut self) {
        let mut home: [Option<usize>; CHANNELS] = [None; CHANNELS];
        for (i, part) in self.parts.iter().enumerate() {
            if !part.track.notes.is_empty() {
                home[usize::from(part.channel)].get_or_insert(i);
            }
        }
        let with_notes: std::collections::HashSet<(usize, u8)> = self
            .parts
            .iter()
            .filter(|part| !part.track.notes.is_empty())
            .map(|part| (part.midi_track, part.channel))
            .collect();
        for i in 0..self.parts.len() {
            let (midi_track, channel) = (self.parts[i].midi_track, self.parts[i].channel);
            let lonely = !self.parts[i].track.pedals.is_empty()
                && !with_notes.contains(&(midi_track, channel));
            if let (true, Some(home)) = (lonely, home[usize::from(channel)]) {
                let moved = std::mem::take(&mut self.parts[i].track.pedals);
                self.parts[home].track.pedals.extend(moved);
                self.parts[home].track.pedals.sort_by_key(|pedal| pedal.tick);
            }
        }
    }
}
