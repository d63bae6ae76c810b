//! Adam with PyTorch's arithmetic (Kingma and Ba, ICLR 2015), its state open to be saved.

use std::collections::BTreeMap;

use candle_core::{Result, Shape, Tensor, Var};

/// What is added to the root of the second moment.
const EPSILON: f64 = 1e-8;

/// Moments of every parameter.
#[derive(Clone, Debug)]
pub struct Adam {
    betas: [f64; 2],
    states: BTreeMap<String, State>,
    joined: Vec<Joined>,
}

/// Moments of several parameters, one behind the other.
#[derive(Clone, Debug)]
struct Joined {
    names: Vec<String>,
    shapes: Vec<Shape>,
    state: State,
}

/// A parameter's name, itself, its gradient.
pub type Change<'a> = (&'a str, &'a Var, &'a Tensor);

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
            joined: Vec::new(),
        }
    }

    /// Moves several parameters; on a card as if they were one, because there work on a small tensor takes as long as on a large one.
    ///
    /// # Errors
    /// As [`Adam::update`].
    pub fn update_all(&mut self, changes: &[Change<'_>], rate: f64) -> Result<()> {
        match changes.first() {
            Some((_, parameter, _)) if parameter.device().is_cuda() => {
                self.update_joined(changes, rate)
            }
            _ => changes.iter().try_for_each(|(name, parameter, gradient)| {
                self.update(name, parameter, gradient, rate)
            }),
        }
    }

    fn update_joined(&mut self, changes: &[Change<'_>], rate: f64) -> Result<()> {
        let same = |joined: &Joined| {
            joined
                .names
                .iter()
                .eq(changes.iter().map(|(name, ..)| name))
        };
        if !self.joined.iter().any(same) {
            self.join(changes)?;
        }
        let Some(joined) = self.joined.iter_mut().find(|joined| same(joined)) else {
            // They were moved unequally often.
            return changes.iter().try_for_each(|(name, parameter, gradient)| {
                self.update(name, parameter, gradient, rate)
            });
        };
        let gradients = changes.iter().map(|(.., gradient)| gradient.flatten_all());
        let gradient = Tensor::cat(&gradients.collect::<Result<Vec<_>>>()?, 0)?;
        let step = joined.state.step(self.betas, &gradient, rate)?;
        let mut at = 0;
        for (_, parameter, _) in changes {
            let length = parameter.elem_count();
            let step = step.narrow(0, at, length)?.reshape(parameter.shape())?;
            parameter.set(&(parameter.as_detached_tensor() - step)?)?;
            at += length;
        }
        Ok(())
    }

    /// Puts the moments of these parameters one behind the other, if they were moved equally often.
    fn join(&mut self, changes: &[Change<'_>]) -> Result<()> {
        let wanted = |name: &String| changes.iter().any(|(one, ..)| one == name);
        for joined in std::mem::take(&mut self.joined) {
            if joined.names.iter().any(wanted) {
                self.states.extend(joined.apart()?);
            } else {
                self.joined.push(joined);
            }
        }
        let steps_of = |name: &str| self.states.get(name).map_or(0, |state| state.steps);
        let steps = changes.first().map_or(0, |(name, ..)| steps_of(name));
        if changes.iter().any(|(name, ..)| steps_of(name) != steps) {
            return Ok(());
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (name, parameter, _) in changes {
            let state = match self.states.remove(*name) {
                Some(state) => state,
                None => State::of(parameter)?,
            };
            first.push(state.first.flatten_all()?);
            second.push(state.second.flatten_all()?);
        }
        self.joined.push(Joined {
            names: changes
                .iter()
                .map(|(name, ..)| (*name).to_owned())
                .collect(),
            shapes: changes.iter().map(|(_, p, _)| p.shape().clone()).collect(),
            state: State {
                steps,
                first: Tensor::cat(&first, 0)?,
                second: Tensor::cat(&second, 0)?,
            },
        });
        Ok(())
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
        let state = match self.states.get_mut(name) {
            Some(state) => state,
            None => self
                .states
                .entry(name.to_owned())
                .or_insert(State::of(parameter)?),
        };
        let step = state.step(self.betas, gradient, rate)?;
        parameter.set(&(parameter.as_detached_tensor() - step)?)
    }

    /// The moments of every parameter that was updated.
    ///
    /// # Errors
    /// When the device fails.
    pub fn states(&self) -> Result<BTreeMap<String, State>> {
        let mut states = self.states.clone();
        for joined in &self.joined {
            states.extend(joined.apart()?);
        }
        Ok(states)
    }

    /// Takes up moments of an earlier run.
    pub fn restore(&mut self, name: String, state: State) {
        self.states.insert(name, state);
    }
}

impl State {
    /// Of a parameter that was never moved.
    fn of(parameter: &Var) -> Result<Self> {
        let zeros = parameter.as_detached_tensor().zeros_like()?;
        Ok(Self {
            steps: 0,
            first: zeros.clone(),
            second: zeros,
        })
    }

    /// Takes a gradient in; gives what is to be subtracted.
    fn step(&mut self, [beta1, beta2]: [f64; 2], gradient: &Tensor, rate: f64) -> Result<Tensor> {
        self.steps += 1;
        let gradient = gradient.detach();
        self.first = (&self.first + ((&gradient - &self.first)? * (1.0 - beta1))?)?;
        self.second = ((&self.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let steps = self.steps as f64;
        let (correction1, correction2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
        let root = ((self.second.sqrt()? / correction2.sqrt())? + EPSILON)?;
        (&self.first / root)? * (rate / correction1)
    }
}

impl Joined {
    /// Those of each parameter.
    fn apart(&self) -> Result<Vec<(String, State)>> {
        let mut at = 0;
        let each = self.names.iter().zip(&self.shapes).map(|(name, shape)| {
            let length = shape.elem_count();
            let part = |all: &Tensor| all.narrow(0, at, length)?.reshape(shape);
            let state = State {
                steps: self.state.steps,
                first: part(&self.state.first)?,
                second: part(&self.state.second)?,
            };
            at += length;
            Ok((name.clone(), state))
        });
        each.collect()
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
        assert_eq!(adam.states().unwrap()["p"].steps, 3);
    }

    #[test]
    fn joined_parameters_are_moved_as_each_by_itself() {
        let make = |value: f32, shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| value + 0.1 * i as f32).collect();
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
        };
        let make = || [make(1.0, &[2, 3]), make(-2.0, &[4]), make(0.5, &[1, 1, 2])];
        let (alone, together) = (make(), make());
        let mut adams = [Adam::new([0.5, 0.999]), Adam::new([0.5, 0.999])];
        let names = ["a", "b", "c"];
        // At last one that was moved more often than the others.
        for (i, which) in [0..2, 0..3, 1..3, 0..3, 0..1, 0..3].into_iter().enumerate() {
            let gradients: Vec<Tensor> = alone
                .iter()
                .map(|p| (p.as_detached_tensor() * (1.0 + i as f64)).unwrap())
                .collect();
            for k in which.clone() {
                let [adam, _] = &mut adams;
                adam.update(names[k], &alone[k], &gradients[k], 0.1)
                    .unwrap();
            }
            let changes: Vec<Change<'_>> = which
                .map(|k| (names[k], &together[k], &gradients[k]))
                .collect();
            adams[1].update_joined(&changes, 0.1).unwrap();
            let flat = |p: &Tensor| p.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (a, b) in alone.iter().zip(&together) {
                assert_eq!(flat(a), flat(b), "{i}");
            }
            let [a, b] = adams.each_ref().map(|adam| adam.states().unwrap());
            assert!(a.keys().eq(b.keys()));
            for (name, state) in &a {
                assert_eq!(state.steps, b[name].steps);
                assert_eq!(flat(&state.first), flat(&b[name].first));
                assert_eq!(flat(&state.second), flat(&b[name].second));
            }
        }
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
