"""From a name to a class or a suite file: built-ins, installed plug-ins and files of the user's."""
