//! Memory of a device with an owner.

use super::{Error, Gpu};
use std::marker::PhantomData;

/// Numbers in a device's memory, freed when dropped.
pub struct DeviceBuffer<'a, T> {
    gpu: &'a dyn Gpu,
    address: u64,
    len: usize,
    kind: PhantomData<T>,
}

impl<'a, T: bytemuck::Pod> DeviceBuffer<'a, T> {
    /// Room for `len` numbers, every byte 0xff: floats are NaN until something is written.
    ///
    /// # Errors
    /// If the device has not so much left.
    pub fn poisoned(gpu: &'a dyn Gpu, len: usize) -> Result<DeviceBuffer<'a, T>, Error> {
        DeviceBuffer::filled(gpu, len, 0xff)
    }

    /// Room for `len` numbers, all zero.
    ///
    /// # Errors
    /// If the device has not so much left.
    pub fn zeros(gpu: &'a dyn Gpu, len: usize) -> Result<DeviceBuffer<'a, T>, Error> {
        DeviceBuffer::filled(gpu, len, 0)
    }

    fn filled(gpu: &'a dyn Gpu, len: usize, byte: u8) -> Result<DeviceBuffer<'a, T>, Error> {
        let bytes = len * size_of::<T>();
        let address = gpu.alloc(bytes)?;
        let buffer = DeviceBuffer { gpu, address, len, kind: PhantomData };
        gpu.memset(address, byte, bytes)?;
        Ok(buffer)
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// If the device has not so much left.
    pub fn from_slice(gpu: &'a dyn Gpu, values: &[T]) -> Result<DeviceBuffer<'a, T>, Error> {
        let address = gpu.alloc(size_of_val(values))?;
        let buffer = DeviceBuffer { gpu, address, len: values.len(), kind: PhantomData };
        gpu.upload(address, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    /// The address of the first number.
    pub fn ptr(&self) -> u64 {
        self.address
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The numbers, once all queued work is done.
    ///
    /// # Errors
    /// If some of that work failed.
    pub fn to_vec(&self) -> Result<Vec<T>, Error> {
        let mut values = vec![T::zeroed(); self.len];
        self.gpu.download(self.address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Writes `values` over what is there.
    ///
    /// # Errors
    /// If the driver refuses.
    ///
    /// # Panics
    /// If there are not [`DeviceBuffer::len`] values.
    pub fn write(&self, values: &[T]) -> Result<(), Error> {
        assert_eq!(values.len(), self.len);
        self.gpu.upload(self.address, bytemuck::cast_slice(values))
    }
}

impl<T> Drop for DeviceBuffer<'_, T> {
    fn drop(&mut self) {
        self.gpu.free(self.address);
    }
}
