"""The reference plans, installed as c2f_nnunet.plans; the file makes editable installs find them, too."""
