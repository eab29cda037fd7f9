"""Makes the demo's scene inside Blender: a turntable with a gold ring and marbles, and an image
texture beside the .blend as a support file. Arguments behind `--`: the folder, the number of frames."""

import math
import os
import sys

import bpy

folder, frames = sys.argv[sys.argv.index("--") + 1 :]
frames = int(frames)
textures = os.path.join(folder, "textures")
os.makedirs(textures, exist_ok=True)

bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.frame_start, scene.frame_end = 1, frames
scene.render.engine = "CYCLES"
scene.cycles.device = "CPU"
scene.cycles.samples = 16
scene.cycles.use_denoising = False
scene.render.resolution_x, scene.render.resolution_y = 400, 300
scene.render.resolution_percentage = 100


def texture_file():
    """A checkered board with a grain, written as a PNG that the scene reads by a relative path."""
    size = 256
    image = bpy.data.images.new("board", size, size)
    pixels = []
    for y in range(size):
        for x in range(size):
            dark = (x // 32 + y // 32) % 2
            grain = 0.06 * math.sin(x * 0.9 + 3 * math.sin(y * 0.05))
            red, green, blue = (0.22, 0.10, 0.05) if dark else (0.85, 0.72, 0.50)
            pixels += [red + grain, green + grain, blue + grain / 2, 1.0]
    image.pixels = pixels
    path = os.path.join(textures, "board.png")
    image.filepath_raw = path
    image.file_format = "PNG"
    image.save()
    bpy.data.images.remove(image)
    return bpy.data.images.load(path)


def material(name, colour, metallic=0.0, roughness=0.4, image=None):
    made = bpy.data.materials.new(name)
    made.use_nodes = True
    nodes, links = made.node_tree.nodes, made.node_tree.links
    surface = nodes["Principled BSDF"]
    surface.inputs["Base Color"].default_value = (*colour, 1)
    surface.inputs["Metallic"].default_value = metallic
    surface.inputs["Roughness"].default_value = roughness
    if image:
        node = nodes.new("ShaderNodeTexImage")
        node.image = image
        links.new(node.outputs["Color"], surface.inputs["Base Color"])
    return made


def put(operator, dressed, smooth=True, **place):
    operator(**place)
    thing = bpy.context.object
    thing.data.materials.append(dressed)
    if smooth:
        for face in thing.data.polygons:
            face.use_smooth = True
    return thing


mesh = bpy.ops.mesh
put(mesh.primitive_plane_add, material("board", (1, 1, 1), roughness=0.5, image=texture_file()), smooth=False, size=9)
put(mesh.primitive_torus_add, material("gold", (1.0, 0.66, 0.22), metallic=1, roughness=0.18),
    major_radius=1.5, minor_radius=0.32, major_segments=96, minor_segments=32, location=(0, 0, 0.33))
put(mesh.primitive_monkey_add, material("clay", (0.75, 0.25, 0.16), roughness=0.55), size=1.5, location=(0, 0, 1.15))
colours = [(0.10, 0.35, 0.85), (0.10, 0.65, 0.30), (0.85, 0.70, 0.10), (0.65, 0.15, 0.60), (0.1, 0.65, 0.75), (0.9, 0.35, 0.1)]
for i, colour in enumerate(colours):
    angle = 2 * math.pi * i / len(colours)
    put(mesh.primitive_uv_sphere_add, material(f"marble {i}", colour, metallic=0.3, roughness=0.1),
        segments=48, ring_count=24, radius=0.42, location=(2.6 * math.cos(angle), 2.6 * math.sin(angle), 0.42))

bpy.ops.object.light_add(type="AREA", location=(3.5, -3, 5))
lamp = bpy.context.object
lamp.data.energy, lamp.data.size = 600, 3
lamp.rotation_euler = (math.radians(38), 0, math.radians(48))
world = bpy.data.worlds.new("sky")
world.use_nodes = True
world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.35, 0.45, 0.62, 1)
world.node_tree.nodes["Background"].inputs["Strength"].default_value = 0.7
scene.world = world

# The camera travels once around the middle.
bpy.ops.object.empty_add(location=(0, 0, 0.6))
middle = bpy.context.object
bpy.ops.object.camera_add(location=(0, -6.8, 3.6))
camera = bpy.context.object
camera.parent = middle
aim = camera.constraints.new("TRACK_TO")
aim.target, aim.track_axis, aim.up_axis = middle, "TRACK_NEGATIVE_Z", "UP_Y"
scene.camera = camera
bpy.context.preferences.filepaths.save_version = 0
bpy.context.preferences.edit.keyframe_new_interpolation_type = "LINEAR"
middle.rotation_euler = (0, 0, 0)
middle.keyframe_insert("rotation_euler", frame=1)
middle.rotation_euler = (0, 0, 2 * math.pi)
middle.keyframe_insert("rotation_euler", frame=frames + 1)

path = os.path.join(folder, "turntable.blend")
bpy.ops.wm.save_as_mainfile(filepath=path)
bpy.ops.file.make_paths_relative()
bpy.ops.wm.save_as_mainfile(filepath=path)
