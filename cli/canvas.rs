//! Pictures from pixels: rectangles, lines, small letters, PNG.

/// A colour: red, green, blue.
pub type Rgb = [u8; 3];

/// Colours that stay apart for colour-blind eyes (Okabe and Ito 2008), darkest uses first.
pub const PALETTE: [Rgb; 8] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [86, 180, 233],
    [230, 159, 0],
    [100, 80, 160],
    [120, 120, 120],
];

/// An image in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    /// Makes an image of one colour.
    pub fn new(width: usize, height: usize, colour: Rgb) -> Canvas {
        Canvas { width, height, pixels: colour.repeat(width * height) }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The colour of a pixel.
    ///
    /// # Panics
    /// If the pixel lies outside.
    pub fn pixel(&self, x: usize, y: usize) -> Rgb {
        let at = 3 * (y * self.width + x);
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }

    /// Fills a rectangle; what lies outside is left out.
    pub fn rect(&mut self, x: i64, y: i64, width: i64, height: i64, colour: Rgb) {
        let (left, right) = (clamp(x, self.width), clamp(x.saturating_add(width), self.width));
        let (top, bottom) = (clamp(y, self.height), clamp(y.saturating_add(height), self.height));
        if left >= right {
            return;
        }
        for row in top..bottom {
            let from = 3 * (row * self.width + left);
            let to = 3 * (row * self.width + right);
            for pixel in self.pixels[from..to].chunks_exact_mut(3) {
                pixel.copy_from_slice(&colour);
            }
        }
    }

    /// Draws a line of a thickness, from point to point.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), thickness: i64, colour: Rgb) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).ceil();
        let steps = steps.clamp(1.0, 1e5) as usize;
        for i in 0..=steps {
            let t = i as f64 / steps as f64;
            let (x, y) = (from.0 + (to.0 - from.0) * t, from.1 + (to.1 - from.1) * t);
            let half = thickness as f64 / 2.0;
            let (x, y) = ((x - half).round() as i64, (y - half).round() as i64);
            self.rect(x, y, thickness, thickness, colour);
        }
    }

    /// Writes text with its upper left corner at a point; letters are capitals, 5 by 7 times `scale`.
    pub fn text(&mut self, x: i64, y: i64, scale: i64, text: &str, colour: Rgb) {
        for (i, letter) in text.chars().enumerate() {
            for (row, bits) in glyph(letter).into_iter().enumerate() {
                for column in 0..5 {
                    if bits >> (4 - column) & 1 == 1 {
                        let left = x + (6 * i as i64 + column) * scale;
                        self.rect(left, y + row as i64 * scale, scale, scale, colour);
                    }
                }
            }
        }
    }

    /// Halves the image, each pixel the mean of four: smooth edges from rough ones.
    pub fn halved(&self) -> Canvas {
        let (width, height) = (self.width / 2, self.height / 2);
        let mut pixels = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            for x in 0..width {
                for channel in 0..3 {
                    let at = |dx: usize, dy: usize| {
                        let index = 3 * ((2 * y + dy) * self.width + 2 * x + dx) + channel;
                        u16::from(self.pixels[index])
                    };
                    pixels.push(((at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1) + 2) / 4) as u8);
                }
            }
        }
        Canvas { width, height, pixels }
    }

    /// The image as a PNG file.
    pub fn png(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        // Neither can fail: the sizes agree, and a vector takes any number of bytes.
        let written = encoder.write_header().and_then(|mut w| w.write_image_data(&self.pixels));
        debug_assert!(written.is_ok());
        bytes
    }
}

/// Mixes two colours: `share` of the second.
pub fn blend(first: Rgb, second: Rgb, share: f32) -> Rgb {
    let mix = |a: u8, b: u8| f32::from(a) + (f32::from(b) - f32::from(a)) * share.clamp(0.0, 1.0);
    [0, 1, 2].map(|i| mix(first[i], second[i]).round() as u8)
}

/// The width of a text in pixels.
pub fn text_width(text: &str, scale: i64) -> i64 {
    (6 * text.chars().count() as i64 - 1).max(0) * scale
}

fn clamp(at: i64, size: usize) -> usize {
    at.clamp(0, size as i64) as usize
}

/// The seven rows of a letter, five bits each. Small letters are drawn as capitals; what is unknown
/// is a box.
fn glyph(letter: char) -> [u8; 7] {
    match letter.to_ascii_uppercase() {
        ' ' => [0; 7],
        '0' => [0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e],
        '1' => [0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e],
        '2' => [0x0e, 0x11, 0x01, 0x06, 0x08, 0x10, 0x1f],
        '3' => [0x0e, 0x11, 0x01, 0x06, 0x01, 0x11, 0x0e],
        '4' => [0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02],
        '5' => [0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e],
        '6' => [0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e],
        '7' => [0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
        '8' => [0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e],
        '9' => [0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c],
        'A' => [0x0e, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11],
        'B' => [0x1e, 0x11, 0x11, 0x1e, 0x11, 0x11, 0x1e],
        'C' => [0x0e, 0x11, 0x10, 0x10, 0x10, 0x11, 0x0e],
        'D' => [0x1e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1e],
        'E' => [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f],
        'F' => [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10],
        'G' => [0x0e, 0x11, 0x10, 0x17, 0x11, 0x11, 0x0f],
        'H' => [0x11, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11],
        'I' => [0x0e, 0x04, 0x04, 0x04, 0x04, 0x04, 0x0e],
        'J' => [0x07, 0x02, 0x02, 0x02, 0x02, 0x12, 0x0c],
        'K' => [0x11, 0x12, 0x14, 0x18, 0x14, 0x12, 0x11],
        'L' => [0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f],
        'M' => [0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11],
        'N' => [0x11, 0x19, 0x15, 0x13, 0x11, 0x11, 0x11],
        'O' => [0x0e, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e],
        'P' => [0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10],
        'Q' => [0x0e, 0x11, 0x11, 0x11, 0x15, 0x12, 0x0d],
        'R' => [0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11],
        'S' => [0x0f, 0x10, 0x10, 0x0e, 0x01, 0x01, 0x1e],
        'T' => [0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04],
        'U' => [0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x0e],
        'V' => [0x11, 0x11, 0x11, 0x11, 0x11, 0x0a, 0x04],
        'W' => [0x11, 0x11, 0x11, 0x15, 0x15, 0x1b, 0x11],
        'X' => [0x11, 0x11, 0x0a, 0x04, 0x0a, 0x11, 0x11],
        'Y' => [0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04],
        'Z' => [0x1f, 0x01, 0x02, 0x04, 0x08, 0x10, 0x1f],
        '.' => [0, 0, 0, 0, 0, 0x0c, 0x0c],
        ',' => [0, 0, 0, 0, 0x0c, 0x04, 0x08],
        ':' => [0, 0x0c, 0x0c, 0, 0x0c, 0x0c, 0],
        '-' => [0, 0, 0, 0x1f, 0, 0, 0],
        '_' => [0, 0, 0, 0, 0, 0, 0x1f],
        '+' => [0, 0x04, 0x04, 0x1f, 0x04, 0x04, 0],
        '/' => [0x01, 0x01, 0x02, 0x04, 0x08, 0x10, 0x10],
        '%' => [0x18, 0x19, 0x02, 0x04, 0x08, 0x13, 0x03],
        '(' => [0x02, 0x04, 0x08, 0x08, 0x08, 0x04, 0x02],
        ')' => [0x08, 0x04, 0x02, 0x02, 0x02, 0x04, 0x08],
        '#' => [0x0a, 0x0a, 0x1f, 0x0a, 0x1f, 0x0a, 0x0a],
        '=' => [0, 0, 0x1f, 0, 0x1f, 0, 0],
        '\'' => [0x04, 0x04, 0x08, 0, 0, 0, 0],
        '&' => [0x0c, 0x12, 0x14, 0x08, 0x15, 0x12, 0x0d],
        _ => [0x1f, 0x11, 0x11, 0x11, 0x11, 0x11, 0x1f],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut canvas = Canvas::new(10, 10, [255; 3]);
        canvas.rect(-5, -5, 7, 7, [0; 3]);
        canvas.rect(8, 8, i64::MAX, i64::MAX, [1; 3]);
        canvas.rect(5, 5, -3, 2, [2; 3]);
        canvas.text(7, 7, 3, "#", [3; 3]);
        assert_eq!(canvas.pixel(1, 1), [0; 3]);
        assert_eq!(canvas.pixel(2, 2), [255; 3]);
        assert_eq!(canvas.pixel(4, 5), [255; 3]);
    }

    #[test]
    fn a_png_holds_the_pixels() {
        let mut canvas = Canvas::new(7, 3, [255, 0, 9]);
        canvas.rect(2, 1, 3, 1, [1, 2, 3]);
        let png = canvas.png();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, canvas.pixels);
    }

    #[test]
    fn letters_and_digits_differ() {
        let all: Vec<[u8; 7]> = ('0'..='9').chain('A'..='Z').map(glyph).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
        assert_eq!(glyph('q'), glyph('Q'));
    }
}
