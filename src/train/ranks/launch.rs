//! What launchers tell a process by its environment: which of how many it is, and where the first one is.

use super::Error;

/// The port where nothing names one; PyTorch's.
const PORT: u16 = 29500;

/// More processes than these are a mistake.
const MOST: usize = 1 << 16;

/// One process among those of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// From 0 on.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// From 0 on, among those of this machine.
    pub local: usize,
    /// Where rank 0 is, when it is known.
    pub host: Option<String>,
    /// Where rank 0 is met there.
    pub port: u16,
}

/// Variables of rank, size and rank on the machine.
const LAUNCHERS: &[[&str; 3]] = &[
    // torchrun, and whoever sets them by hand.
    ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    // mpirun of OpenMPI.
    [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ],
    // mpiexec of MPICH and Intel.
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
    // srun. A script of sbatch has a SLURM_NTASKS too, but is one process and not of a step.
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
];

impl Place {
    /// From the environment; `None` for a process that nobody launched as one of several.
    ///
    /// # Errors
    /// When the variables contradict each other.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let number = |name: &str| -> Result<Option<usize>, Error> {
            let Some(text) = get(name) else {
                return Ok(None);
            };
            let number = text.trim().parse().ok().filter(|n| *n <= MOST);
            let wrong = || Error::Ranks(format!("{name} is '{text}', not a number up to {MOST}"));
            number.map(Some).ok_or_else(wrong)
        };
        for [rank_name, size_name, local_name] in LAUNCHERS {
            let Some(size) = number(size_name)? else {
                continue;
            };
            let rank = number(rank_name)?.ok_or_else(|| {
                Error::Ranks(format!("{size_name} is {size}, but {rank_name} is not set"))
            })?;
            if rank >= size {
                return Err(Error::Ranks(format!(
                    "{rank_name} is {rank}, but {size_name} only {size}"
                )));
            }
            return Ok(Some(Self {
                rank,
                size,
                local: number(local_name)?.unwrap_or(rank),
                host: host(&get, size),
                port: port(&get)?,
            }));
        }
        Ok(None)
    }
}

fn host(get: &impl Fn(&str) -> Option<String>, size: usize) -> Option<String> {
    if let Some(host) = get("MASTER_ADDR") {
        return Some(host);
    }
    let here = get("OMPI_COMM_WORLD_LOCAL_SIZE").or_else(|| get("MPI_LOCALNRANKS"));
    if here == Some(size.to_string()) {
        return Some("127.0.0.1".to_owned());
    }
    let nodes = get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_NODELIST"))?;
    first_node(&nodes)
}

/// The first of Slurm's list, as in `gpu[07-09,12]-a,login`.
fn first_node(nodes: &str) -> Option<String> {
    let bracket = nodes.find(['[', ',']).unwrap_or(nodes.len());
    let (before, rest) = nodes.split_at(bracket);
    let name = match rest.strip_prefix('[') {
        None => before.to_owned(),
        Some(rest) => {
            let (numbers, after) = rest.split_once(']')?;
            let first = numbers.split(['-', ',']).next()?;
            let after = after.split(',').next()?;
            format!("{before}{first}{after}")
        }
    };
    (!name.is_empty()).then_some(name)
}

fn port(get: &impl Fn(&str) -> Option<String>) -> Result<u16, Error> {
    if let Some(text) = get("MASTER_PORT") {
        let port: Option<u16> = text.trim().parse().ok();
        // torchrun may keep a server of its own there.
        let taken = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|taken| taken == "True");
        let port = port.and_then(|port| port.checked_add(u16::from(taken)));
        return port.ok_or_else(|| Error::Ranks(format!("MASTER_PORT is '{text}', not a port")));
    }
    // Two jobs on one machine must not meet.
    let job = get("SLURM_JOB_ID").and_then(|job| job.parse::<u64>().ok());
    Ok(job.map_or(PORT, |job| 15_000 + (job % 10_000) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Place>, String> {
        let of = |name: &str| {
            let mut pairs = text.split_whitespace().filter_map(|p| p.split_once('='));
            pairs.find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        };
        Place::read(of).map_err(|e| e.to_string())
    }

    fn place(rank: usize, size: usize, local: usize, host: &str, port: u16) -> Place {
        let host = Some(host.to_owned());
        Place {
            rank,
            size,
            local,
            host,
            port,
        }
    }

    #[test]
    fn every_launcher_is_understood() {
        let torchrun = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1234";
        assert_eq!(read(torchrun), Ok(Some(place(5, 8, 1, "a", 1234))));
        let with_store = format!("{torchrun} TORCHELASTIC_USE_AGENT_STORE=True");
        assert_eq!(read(&with_store), Ok(Some(place(5, 8, 1, "a", 1235))));
        let slurm = "SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_JOB_ID=120042 \
            SLURM_NODELIST=gpu[07-09,12]-a,login";
        assert_eq!(read(slurm), Ok(Some(place(3, 4, 1, "gpu07-a", 15042))));
        let mpirun = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 \
            OMPI_COMM_WORLD_LOCAL_SIZE=2";
        assert_eq!(read(mpirun), Ok(Some(place(1, 2, 1, "127.0.0.1", 29500))));
        let far = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1";
        assert_eq!(read(far).unwrap().unwrap().host, None);
    }

    #[test]
    fn a_process_by_itself_is_alone() {
        assert_eq!(read(""), Ok(None));
        assert_eq!(
            read("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=1"),
            Ok(None)
        );
    }

    #[test]
    fn contradictions_are_named() {
        for (text, part) in [
            ("WORLD_SIZE=2", "RANK is not set"),
            ("WORLD_SIZE=2 RANK=2", "RANK is 2, but WORLD_SIZE only 2"),
            ("WORLD_SIZE=-1 RANK=0", "WORLD_SIZE is '-1'"),
            ("WORLD_SIZE=99999999 RANK=0", "not a number up to"),
            ("WORLD_SIZE=2 RANK=0 MASTER_PORT=70000", "MASTER_PORT"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_node_is_found() {
        for (list, first) in [
            ("a", Some("a")),
            ("a,b", Some("a")),
            ("n[1]", Some("n1")),
            ("n[003-9]", Some("n003")),
            ("n[1,5]x,b", Some("n1x")),
            ("n[1", None),
            ("", None),
        ] {
            assert_eq!(first_node(list).as_deref(), first, "{list}");
        }
    }
}
