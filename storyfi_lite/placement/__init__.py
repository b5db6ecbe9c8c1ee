"""Which model file fits this machine, how it is loaded, and what that will take.

    weights   bytes of a file by layer, from its header or from models.yaml
    memory    a formula for what llama.cpp takes on each device for given settings
    fit       the settings under which one file fits
    speed     predicted tokens a second; calibrate measures the CPU
    plan      the choice among all files, and its reasons
    step_down the next smaller thing to try when a load fails all the same

Pure arithmetic but for calibrate: loads no model, makes no network call.
"""
