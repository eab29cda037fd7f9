//! Submissions as people make them: what becomes of a scene or a bundle, and what is said of a broken one.

use std::fs;
use std::path::{Path, PathBuf};

use meshfarm_protocol::id::{Millis, StepNo, TaskNo, TenantId};
use meshfarm_protocol::job::{Access, MeshPolicy, Place};
use meshfarm_protocol::profile::Amount;
use meshfarm_protocol::session::PlayedTasks;

use super::*;

struct Studio(tempfile::TempDir);

impl Studio {
    fn new(files: &[(&str, &str)]) -> Self {
        let studio = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = studio.at(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        studio
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn request(&self, source: &str) -> SubmitRequest {
        SubmitRequest {
            source: source.into(),
            cwd: self.0.path().to_owned(),
            user: "ada".into(),
            ..SubmitRequest::default()
        }
    }

    fn load(&self, request: &SubmitRequest) -> Result<LoadedJob, BundleError> {
        let before = self.listing();
        let loaded = load_with(request);
        assert_eq!(self.listing(), before, "loading writes nothing");
        loaded
    }

    fn refusal(&self, request: &SubmitRequest) -> String {
        self.load(request).unwrap_err().to_string()
    }

    fn listing(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                all.push(path);
            }
        }
        all.sort();
        all
    }
}

fn load_with(request: &SubmitRequest) -> Result<LoadedJob, BundleError> {
    let catalog = Catalog::open(None).unwrap();
    let policy = MeshPolicy::default();
    let defaults = Defaults {
        catalog: &catalog,
        policy: &policy,
        project: "main",
        tenant_of: &|project| TenantId([project.as_bytes()[0]; 16]),
        now: Millis(1),
    };
    load(request, &defaults)
}

fn parameters(job: &LoadedJob) -> std::collections::BTreeMap<String, String> {
    serde_json::from_slice::<JobFile>(&job.job_json).unwrap().parameters
}

fn paths(job: &LoadedJob) -> Vec<&str> {
    job.inputs.iter().map(|input| input.path.as_str()).collect()
}

#[test]
fn a_pov_ray_scene_travels_with_what_it_names() {
    let studio = Studio::new(&[
        (
            "shot/ball.pov",
            "#include \"parts.inc\"\n#include \"colors.inc\"\nimage_map { png \"maps/wood.png\" }",
        ),
        ("shot/parts.inc", "height_field { png \"hills.png\" } #include \"../other/far.inc\""),
        ("shot/maps/wood.png", "x"),
        ("shot/hills.png", "x"),
        ("shot/secret.txt", "x"),
        ("other/far.inc", "x"),
    ]);
    let mut request = studio.request("shot/ball.pov");
    request.frames = Some("3-12:3".into());
    request.resolution = Some("64x48".into());
    let job = studio.load(&request).unwrap();
    assert_eq!(paths(&job), ["r0/ball.pov", "r0/hills.png", "r0/maps/wood.png", "r0/parts.inc"]);
    let frames = studio.at("shot/ball_frames");
    assert_eq!(job.outputs, [("r1".to_owned(), frames.clone())]);
    assert_eq!(job.spec.layout.roots[1].access, Access::Out);
    assert!(job.warnings.len() == 1 && job.warnings[0].contains("far.inc"), "{:?}", job.warnings);
    let step = &job.spec.steps[0];
    assert_eq!(step.labels, ["Frame=3", "Frame=6", "Frame=9", "Frame=12"]);
    assert!(!step.environments);
    let povray = &step.requirement.attributes["meshfarm:attr.software.povray"];
    assert!(povray.any_of.contains("any"));
    assert_eq!(step.requirement.amounts["amount.worker.vcpu"].min, Amount::whole(1));
    let values = parameters(&job);
    for (name, value) in [
        ("FirstFrame", "3"),
        ("LastFrame", "12"),
        ("Width", "64"),
        ("Height", "48"),
        ("Name", "ball"),
    ] {
        assert_eq!(values[name], value, "{name}");
    }
    assert_eq!(values["OutputDir"], frames.to_str().unwrap());
    assert_eq!((job.spec.name.as_str(), job.spec.user.as_str()), ("ball", "ada"));
    assert_eq!((job.spec.project.as_str(), job.spec.tenant), ("main", TenantId([b'm'; 16])));
}

#[test]
fn a_pov_ray_animation_is_what_its_settings_say() {
    let settings = "; a comment=1\nInput_File_Name=\"move.pov\"\nInitial_Frame=1\nfinal_frame=30 ;x\nWidth=160\n";
    let studio = Studio::new(&[("move.ini", settings), ("move.pov", "sphere { 0, clock }")]);
    let job = studio.load(&studio.request("move.ini")).unwrap();
    assert_eq!(job.spec.steps[0].labels.len(), 30);
    assert_eq!(paths(&job), ["r0/move.ini", "r0/move.pov"]);
    assert_eq!(parameters(&job)["Width"], "160");
    let mut request = studio.request("move.ini");
    request.frames = Some("7,9".into());
    request.parameters = vec!["Height=99".into()];
    let job = studio.load(&request).unwrap();
    assert_eq!(job.spec.steps[0].labels, ["Frame=7", "Frame=9"]);
    assert_eq!(parameters(&job)["Height"], "99");

    let studio =
        Studio::new(&[("a.ini", "Final_Frame=3\n"), ("b.ini", "Input_File_Name=gone.pov")]);
    assert!(studio.refusal(&studio.request("a.ini")).contains("Input_File_Name"));
    assert!(studio.refusal(&studio.request("b.ini")).contains("gone.pov"));
}

#[test]
fn every_built_in_template_makes_a_job() {
    let studio = Studio::new(&[("a.blend", "x"), ("run.sh", "true")]);
    let mut request = studio.request("a.blend");
    request.frames = Some("1-240".into());
    request.resolution = Some("50%".into());
    request.output = Some("out".into());
    let job = studio.load(&request).unwrap();
    assert_eq!(job.spec.steps[0].labels.len(), 240);
    assert_eq!(parameters(&job)["Percent"], "50");
    assert_eq!(job.outputs[0].1, studio.at("out"));
    let job = studio.load(&studio.request("run.sh")).unwrap();
    assert_eq!(paths(&job), ["r0/run.sh"]);
    let mut request = studio.request("bundle:command");
    request.parameters = vec!["Command=echo {frame}".into()];
    request.output = Some("out".into());
    assert_eq!(studio.load(&request).unwrap().spec.name, "command");
}

const TEMPLATE: &str = r#"
specificationVersion: jobtemplate-2023-09
name: "{{Param.Title}}"
parameterDefinitions:
  - {name: Title, type: STRING, default: Shot}
  - {name: Scene, type: PATH, objectType: FILE, dataFlow: IN, default: scene.txt}
  - {name: Extra, type: PATH, objectType: DIRECTORY, dataFlow: IN, default: ""}
  - {name: Out, type: PATH, objectType: DIRECTORY, dataFlow: OUT}
  - {name: Frames, type: STRING, default: "1-3"}
jobEnvironments:
  - {name: Env, variables: {A: b}}
steps:
  - name: Draw
    hostRequirements:
      amounts: [{name: amount.worker.memory, min: 512, max: 1024.5}]
      attributes: [{name: attr.worker.os.family, anyOf: [linux]}, {name: "meshfarm:attr.software.blender", allOf: [v3]}]
    parameterSpace:
      taskParameterDefinitions:
        - {name: Frame, type: INT, range: "{{Param.Frames}}"}
        - {name: Eye, type: STRING, range: [left, right]}
    script: {actions: {onRun: {command: "true"}}}
  - name: Join
    dependencies: [{dependsOn: Draw}]
    script: {actions: {onRun: {command: "true"}}}
"#;

fn exported() -> Studio {
    let values = "parameterValues:\n- {name: 'deadline:priority', value: 80}\n- {name: 'deadline:targetTaskRunStatus', value: SUSPENDED}\n- {name: CondaPackages, value: maya}\n- {name: Out, value: renders}\n- {name: Frames, value: 5-6}\n";
    let assets = r#"{"assetReferences": {"inputs": {"filenames": ["tex/a.png"], "directories": ["lib"]}, "outputs": {"directories": ["more"]}, "referencedPaths": ["/elsewhere"]}}"#;
    Studio::new(&[
        ("b/template.yaml", TEMPLATE),
        ("b/parameter_values.yaml", values),
        ("b/asset_references.json", assets),
        ("b/mesh.toml", "priority = 90\nwhere = 'remote'\nproject = 'film'\n"),
        ("b/scene.txt", "x"),
        ("b/tex/a.png", "x"),
        ("b/lib/deep/c.txt", "x"),
    ])
}

#[test]
fn an_exported_bundle_runs_unchanged() {
    let studio = exported();
    let mut request = studio.request("b");
    request.policy.timeout = Some("5m".parse().unwrap());
    let job = studio.load(&request).unwrap();
    assert_eq!(paths(&job), ["r0/lib/deep/c.txt", "r0/scene.txt", "r0/tex/a.png"]);
    assert_eq!(
        job.outputs,
        [("r1".into(), studio.at("b/more")), ("r2".into(), studio.at("b/renders"))]
    );
    assert!(job.held);
    assert_eq!(job.warnings.len(), 1, "{:?}", job.warnings);
    let policy = &job.spec.policy;
    assert_eq!(
        (policy.priority, &policy.place, policy.timeout),
        (90, &Place::Remote, Some(Millis::seconds(300)))
    );
    assert_eq!((job.spec.project.as_str(), job.spec.tenant), ("film", TenantId([b'f'; 16])));
    let [draw, join] = &job.spec.steps[..] else { panic!() };
    assert_eq!(
        draw.labels,
        ["Frame=5,Eye=left", "Frame=5,Eye=right", "Frame=6,Eye=left", "Frame=6,Eye=right"]
    );
    assert!(draw.environments && join.environments);
    assert_eq!(
        (join.labels.as_slice(), join.needs.as_slice()),
        (&["Join".to_owned()][..], &[StepNo(0)][..])
    );
    let memory = draw.requirement.amounts["amount.worker.memory"];
    assert_eq!((memory.min, memory.max), (Amount::whole(512), Some(Amount(1_024_500))));
    assert!(draw.requirement.attributes["meshfarm:attr.software.blender"].all_of.contains("v3"));
    // The template file within its bundle means the bundle.
    assert!(studio.load(&studio.request("b/template.yaml")).unwrap().held);
}

#[test]
fn a_path_is_relative_to_who_wrote_it() {
    let studio = Studio::new(&[
        ("b/template.yaml", TEMPLATE),
        ("b/scene.txt", "x"),
        ("w/mine.txt", "x"),
        ("v.yaml", "Out: far\nTitle: T\n"),
    ]);
    let mut request = studio.request("../b");
    request.cwd = studio.at("w");
    request.parameters =
        vec!["file://../v.yaml".into(), "Scene=mine.txt".into(), "{\"Frames\": \"1\"}".into()];
    let job = studio.load(&request).unwrap();
    assert_eq!(parameters(&job)["Out"], studio.at("w/far").to_str().unwrap());
    assert_eq!(parameters(&job)["Scene"], studio.at("w/mine.txt").to_str().unwrap());
    assert_eq!((job.spec.name.as_str(), job.spec.steps[0].labels.len()), ("T", 2));
}

#[test]
fn a_broken_template_is_refused_with_its_place() {
    for (from, to, said) in [
        ("jobtemplate-2023-09", "jobtemplate-1999-01", "jobtemplate-1999-01"),
        ("jobEnvironments:", "jobEnviroments:", "(line 10)"),
        ("name: Draw", "name: [Draw", "line"),
        ("dependsOn: Draw", "dependsOn: Drew", "steps[1].dependencies[0]: "),
        ("command: \"true\"", "comand: \"true\"", "steps[0].script: "),
        ("{{Param.Frames}}", "{{Param.Franes}}", "Franes"),
        ("type: INT", "type: INTEGER", "steps[0].parameterSpace.taskParameterDefinitions[0]: "),
        ("name: Env, ", "", "jobEnvironments[0]: "),
        ("type: STRING, default: \"1-3\"", "type: STRNIG", "(line 9)"),
    ] {
        let template = TEMPLATE.replacen(from, to, 1);
        let studio = Studio::new(&[("b/template.yaml", &template), ("b/scene.txt", "x")]);
        let mut request = studio.request("b");
        request.output = Some("out".into());
        let refusal = studio.refusal(&request);
        assert!(refusal.contains("template.yaml") && refusal.contains(said), "{refusal}");
    }
}

#[test]
fn the_tasks_of_chunks_have_numbers() {
    let chunked = r#"
specificationVersion: jobtemplate-2023-09
extensions: [TASK_CHUNKING]
name: Chunks
steps:
  - name: Draw
    parameterSpace:
      taskParameterDefinitions:
        - name: Frames
          type: CHUNK[INT]
          range: "1-10"
          chunks: {defaultTaskCount: 4, targetRuntimeSeconds: 60, rangeConstraint: CONTIGUOUS}
    script: {actions: {onRun: {command: "true"}}}
"#;
    let studio = Studio::new(&[("chunks.yaml", chunked)]);
    let job = studio.load(&studio.request("chunks.yaml")).unwrap();
    let labels = &job.spec.steps[0].labels;
    assert_eq!(labels.len(), 3, "{labels:?}");
    assert!(labels[0].starts_with("Frames=1-"), "{labels:?}");
    let step = &job.spec.steps[0];
    assert_eq!((step.session, step.environments), (Some(Millis::seconds(60)), false));
    let fixed = chunked.replace(" targetRuntimeSeconds: 60,", "");
    let studio = Studio::new(&[("fixed.yaml", &fixed)]);
    let job = studio.load(&studio.request("fixed.yaml")).unwrap();
    assert!(!job.spec.steps[0].shares_sessions());
}

#[test]
fn a_wrong_submission_is_refused_with_what_would_be_right() {
    let studio = Studio::new(&[
        ("b/template.yaml", TEMPLATE),
        ("b/scene.txt", "x"),
        ("a.xyz", "x"),
        ("empty/x", "x"),
        ("n.pov", "x"),
    ]);
    let ask = |change: &dyn Fn(&mut SubmitRequest)| {
        let mut request = studio.request("b");
        request.output = Some("out".into());
        change(&mut request);
        studio.refusal(&request)
    };
    type Case<'a> = (&'a dyn Fn(&mut SubmitRequest), &'a str);
    let cases: &[Case<'_>] = &[
        (&|r| r.output = None, "Out"),
        (&|r| r.parameters = vec!["Frmes=1".into()], "did you mean Frames?"),
        (&|r| r.parameters = vec!["Frames".into()], "NAME=VALUE"),
        (&|r| r.parameters = vec!["Scene=gone.txt".into()], "gone.txt: there is no such file"),
        (&|r| r.parameters = vec![r"Scene=S:\show\a.ma".into()], "Windows path"),
        (&|r| r.frames = Some("1..5".into()), "1-240"),
        (&|r| r.frames = Some("1-600000".into()), "1200000 tasks"),
        (&|r| r.resolution = Some("640x480".into()), "no parameter that takes it"),
        (&|r| r.output = Some("/proc/x".into()), "system folder"),
        (&|r| r.inputs = vec!["nothing".into()], "--input"),
        (&|r| r.source = "gone".into(), "no such file or folder"),
        (&|r| r.source = "empty".into(), "template.yaml"),
        (&|r| r.source = "a.xyz".into(), ".blend (Blender)"),
        (&|r| r.source = "bundle:nothing".into(), "no such bundle"),
        (
            &|r| {
                r.source = "n.pov".into();
                r.parameters = vec!["Width=wide".into()]
            },
            "Width",
        ),
        (
            &|r| {
                r.source = "n.pov".into();
                r.resolution = Some("0x0".into())
            },
            "Width",
        ),
    ];
    for (change, said) in cases {
        let refusal = ask(change);
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn a_broken_file_beside_the_template_is_refused_with_its_element() {
    for (name, text, said) in [
        (
            "parameter_values.yaml",
            "parameterValues: [{name: Out, valeu: x}]",
            "parameterValues[0]: unknown key valeu; did you mean value?",
        ),
        ("parameter_values.json", "{\"parameterValues\": [", "line 1"),
        (
            "parameter_values.yaml",
            "parameterValues: [{name: 'deadline:priority', value: high}]",
            "from 0 to 100",
        ),
        (
            "asset_references.yaml",
            "assetReferences: {inputs: {filenames: [3]}}",
            "assetReferences.inputs.filenames[0]",
        ),
        (
            "asset_references.yaml",
            "assetReferences: {inputs: {filenames: [gone.png]}}",
            "gone.png: there is no such file",
        ),
        ("asset_references.yaml", "assetReferences: {input: {}}", "did you mean inputs?"),
        ("mesh.toml", "prio = 3", "mesh.toml"),
    ] {
        let studio = Studio::new(&[
            ("b/template.yaml", TEMPLATE),
            ("b/scene.txt", "x"),
            (&format!("b/{name}"), text),
        ]);
        let mut request = studio.request("b");
        request.output = Some("out".into());
        let refusal = studio.refusal(&request);
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn a_default_cannot_reach_out_of_a_bundle() {
    for default in ["/etc/passwd", "../../secret"] {
        let template = TEMPLATE.replace("default: scene.txt", &format!("default: {default}"));
        let studio = Studio::new(&[("b/template.yaml", &template)]);
        let mut request = studio.request("b");
        request.output = Some("out".into());
        assert!(studio.refusal(&request).contains("Scene"));
    }
    assert!(Path::new("/etc/passwd").exists());
}

const PLAYED: &str = "\
specificationVersion: jobtemplate-2023-09
name: Played
parameterDefinitions:
  - {name: Scene, type: PATH, objectType: FILE, dataFlow: IN, default: a.scene}
  - {name: Frames, type: PATH, dataFlow: OUT, default: frames}
steps:
  - {name: Last, dependencies: [{dependsOn: Draw}], script: {actions: {onRun: {command: 'true'}}}}
  - name: Draw
    dependencies: [{dependsOn: Sim}]
    parameterSpace:
      taskParameterDefinitions: [{name: F, type: INT, range: 1-4}, {name: S, type: FLOAT, range: [1, 2.5]}]
    script: {actions: {onRun: {command: 'true'}}}
  - {name: Sim, script: {actions: {onRun: {command: 'true'}}}}
  - {name: Alone, script: {actions: {onRun: {command: 'true'}}}}
";

fn play(studio: &Studio) -> PlayRequest {
    PlayRequest {
        template: "t.yaml".into(),
        cwd: studio.0.path().to_owned(),
        ..PlayRequest::default()
    }
}

fn steps_of(request: &PlayRequest) -> Vec<(u32, PlayedTasks)> {
    let steps = prepare(request).unwrap().steps;
    steps.into_iter().map(|played| (played.step.0, played.tasks)).collect()
}

#[test]
fn steps_are_played_in_the_order_of_their_dependencies_and_tasks_are_found_by_their_values() {
    let studio = Studio::new(&[("t.yaml", PLAYED)]);
    let mut request = play(&studio);
    let all = || PlayedTasks::First(u32::MAX);
    assert_eq!(steps_of(&request), [(2, all()), (1, all()), (0, all()), (3, all())]);
    request.step = Some("Draw".into());
    request.tasks = WantedTasks::One(vec![("S".into(), "2.50".into()), ("F".into(), "3".into())]);
    let one = || PlayedTasks::These(vec![TaskNo(5)]);
    assert_eq!(steps_of(&request), [(1, one())]);
    request.dependencies = true;
    assert_eq!(steps_of(&request), [(2, all()), (1, one())]);
    request.tasks = WantedTasks::Listed(r#"[{"F": 1, "S": 1}, {"F": "4", "S": 1}]"#.into());
    let two = PlayedTasks::These(vec![TaskNo(0), TaskNo(6)]);
    assert_eq!(steps_of(&request), [(2, all()), (1, two)]);
    for (tasks, said) in [
        (WantedTasks::One(vec![("F".into(), "3".into())]), "one value for each of F, S"),
        (WantedTasks::Listed(r#"[{"F": 9, "S": 1}]"#.into()), "F=9 S=1"),
        (WantedTasks::Listed("{}".into()), "a list of objects"),
    ] {
        request.tasks = tasks;
        let error = prepare(&request).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    request.step = Some("Drow".into());
    assert!(prepare(&request).unwrap_err().to_string().contains("did you mean Draw?"));
}

#[test]
fn what_is_played_names_its_paths_and_what_stands_around_it() {
    let farm = "{specificationVersion: environment-2023-09, environment: {name: Farm, variables: {Q: '{{Param.Queue}}'}}, \
                parameterDefinitions: [{name: Queue, type: STRING, default: day}]}";
    let studio = Studio::new(&[("t.yaml", PLAYED), ("farm.yaml", farm), ("in/t.yaml", PLAYED)]);
    let mut request = play(&studio);
    request.template = "in/../in/t.yaml".into();
    request.parameters = vec!["Frames=./a/../out".into(), r#"{"Queue": "night"}"#.into()];
    request.environments = vec!["farm.yaml".into()];
    let rule = r#"{"source_path_format":"URI","source_path":"s3://a","destination_path":"/a"}"#;
    let rules = |version| format!(r#"{{"version":"{version}","path_mapping_rules":[{rule}]}}"#);
    request.path_mapping = Some(rules("pathmapping-1.0"));
    let playable = prepare(&request).unwrap();
    let file: JobFile = serde_json::from_slice(&playable.job_json).unwrap();
    assert_eq!(file.parameters["Queue"], "night");
    assert_eq!((file.environments.len(), file.path_mapping.len()), (1, 1));
    let real = studio.0.path().canonicalize().unwrap();
    let paths =
        playable.paths.iter().map(|named| (named.path.clone(), named.is_file, named.writes));
    let (scene, out) = (real.join("in/a.scene"), studio.at("out"));
    assert_eq!(paths.collect::<Vec<_>>(), [(scene, true, false), (out, false, true)]);
    request.path_mapping = Some(rules("pathmapping-9.9"));
    assert!(prepare(&request).unwrap_err().to_string().contains("pathmapping-9.9"));

    let mut submitted = studio.request("t.yaml");
    fs::write(studio.at("a.scene"), "x").unwrap();
    submitted.environments = vec!["farm.yaml".into()];
    submitted.parameters = vec!["Queue=night".into()];
    let job = studio.load(&submitted).unwrap();
    assert!(job.spec.steps.iter().all(|step| step.environments), "their tasks share sessions");
    assert_eq!(parameters(&job)["Queue"], "night");
}

#[test]
fn a_template_of_either_kind_is_checked_within_the_extensions_that_are_allowed() {
    let chunks = "extensions: [TASK_CHUNKING]\n".to_owned() + PLAYED;
    let studio = Studio::new(&[("t.yaml", PLAYED), ("c.yaml", &chunks), ("e.json", "{}")]);
    check(&studio.at("t.yaml"), Some("")).unwrap();
    check(&studio.at("c.yaml"), None).unwrap();
    let refused =
        |name: &str, extensions| check(&studio.at(name), extensions).unwrap_err().to_string();
    assert!(refused("c.yaml", Some("EXPR")).contains("TASK_CHUNKING"));
    assert!(refused("t.yaml", Some("MAGIC")).contains("there are TASK_CHUNKING"));
    assert!(refused("e.json", None).contains("specificationVersion"));
    assert!(refused("none.yaml", None).contains("none.yaml"));
}
