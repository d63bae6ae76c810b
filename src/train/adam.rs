//! Adam with PyTorch's arithmetic (Kingma and Ba, ICLR 2015), its state open to be saved.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

/// What is added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// Moments of every parameter.
#[derive(Clone, Debug)]
pub struct Adam {
    betas: [f64; 2],
    states: BTreeMap<String, State>,
}

/// Moments of one parameter.
#[derive(Clone, Debug)]
pub struct State {
    /// How often it was updated.
    pub steps: u64,
    /// The mean of gradients.
    pub first: Tensor,
    /// The mean of their squares.
    pub second: Tensor,
}

impl Adam {
    /// Without any history.
    pub fn new(betas: [f64; 2]) -> Self {
        Self {
            betas,
            states: BTreeMap::new(),
        }
    }

    /// Moves a parameter against its gradient, by about `rate` at most.
    ///
    /// # Errors
    /// When the gradient is of another shape or type.
    pub fn update(
        &mut self,
        name: &str,
        parameter: &Var,
        gradient: &Tensor,
        rate: f64,
    ) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let state = match self.states.get_mut(name) {
            Some(state) => state,
            None => {
                let zeros = parameter.as_detached_tensor().zeros_like()?;
                let state = State {
                    steps: 0,
                    first: zeros.clone(),
                    second: zeros,
                };
                self.states.entry(name.to_owned()).or_insert(state)
            }
        };
        state.steps += 1;
        let gradient = gradient.detach();
        state.first = (&state.first + ((&gradient - &state.first)? * (1.0 - beta1))?)?;
        state.second = ((&state.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let steps = state.steps as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
        let root = ((state.second.sqrt()? / correction2.sqrt())? + EPSILON)?;
        let step = ((&state.first / root)? * (rate / correction1))?;
        parameter.set(&(parameter.as_detached_tensor() - step)?)
    }

    /// The moments of every parameter that was updated.
    pub fn states(&self) -> &BTreeMap<String, State> {
        &self.states
    }

    /// Takes up moments of an earlier run.
    pub fn restore(&mut self, name: String, state: State) {
        self.states.insert(name, state);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn steps_are_pytorchs() {
        // torch.optim.Adam([p], lr=0.1, betas=(0.5, 0.999)), p = 1, gradients 0.5, -0.2, 0: by the
        // formula of its documentation, computed by hand in f64.
        let parameter = Var::new(&[1f64], &Device::Cpu).unwrap();
        let mut adam = Adam::new([0.5, 0.999]);
        let (mut wanted, mut first, mut second) = (1f64, 0f64, 0f64);
        for (i, g) in [0.5f64, -0.2, 0.0].into_iter().enumerate() {
            let gradient = Tensor::new(&[g], &Device::Cpu).unwrap();
            adam.update("p", &parameter, &gradient, 0.1).unwrap();
            let t = i as i32 + 1;
            first = 0.5 * first + 0.5 * g;
            second = 0.999 * second + 0.001 * g * g;
            let corrected = first / (1.0 - 0.5f64.powi(t));
            wanted -= 0.1 * corrected / ((second / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            let got = parameter.to_vec1::<f64>().unwrap()[0];
            assert!((got - wanted).abs() < 1e-12, "{got} {wanted}");
        }
        // The first step is the rate itself, whatever the gradient.
        assert_eq!(adam.states()["p"].steps, 3);
    }

    #[test]
    fn a_parabola_is_walked_down() {
        let parameter = Var::new(&[3f32, -2.0], &Device::Cpu).unwrap();
        let mut adam = Adam::new([0.9, 0.999]);
        for _ in 0..400 {
            let gradient = (parameter.as_detached_tensor() * 2.0).unwrap();
            adam.update("p", &parameter, &gradient, 0.05).unwrap();
        }
        let values = parameter
            .to_dtype(DType::F32)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(values.iter().all(|v| v.abs() < 0.05), "{values:?}");
    }
}
