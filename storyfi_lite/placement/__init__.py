"""Plans which model file to run on a machine, with which settings, and how much memory and time that will take.

    weights   bytes of a file by layer, from its header or from models.yaml
    memory    a formula for what llama.cpp takes on each device for given settings
    fit       the settings under which one file fits
    speed     predicted tokens a second; calibrate measures the CPU
    plan      the choice among all files, and its reasons
    step_down the next smaller thing to try when a load fails all the same

It loads no model. Only calibrate runs code to measure, and only catalog reads files and the hub.
"""
